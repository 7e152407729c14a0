"""Pure torch: the encoder, the flow, the score and the fit of one category; no Ray, no files, no URIs."""
