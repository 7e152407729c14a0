// Asking the server. Addresses are relative to the page, so that it works below a prefix, too.

const TOKEN = "cflow-ray-token";
const TRIES = 5;
const PASSING = new Set([429, 503]);
const TIMEOUT_MS = 60_000;

/** Why the server refused: `status` (0: it was not reached) and `kind`, the end of the problem's type. */
export class Refusal extends Error {
  constructor(status, kind, detail) {
    super(detail);
    this.status = status;
    this.kind = kind;
  }

  get wantsToken() {
    return this.status === 401 || this.status === 403;
  }
}

export function token() {
  return sessionStorage.getItem(TOKEN) ?? "";
}

export function keepToken(text) {
  if (text) sessionStorage.setItem(TOKEN, text);
  else sessionStorage.removeItem(TOKEN);
}

export function health() {
  return ask("GET", "healthz");
}

export function categories() {
  return ask("GET", "v1/categories");
}

export function category(name) {
  return ask("GET", `v1/categories/${encodeURIComponent(name)}`);
}

export function score(name, file) {
  return ask("POST", `v1/score/${encodeURIComponent(name)}?map=png`, file, file.type || "application/octet-stream");
}

export function promote(name, version) {
  const body = JSON.stringify({ version });
  return ask("POST", `v1/categories/${encodeURIComponent(name)}/promote`, body, "application/json");
}

export function rollback(name) {
  return ask("POST", `v1/categories/${encodeURIComponent(name)}/rollback`);
}

async function ask(method, path, body, type) {
  const headers = { Accept: "application/json, application/problem+json" };
  if (type) headers["Content-Type"] = type;
  if (token()) headers.Authorization = `Bearer ${token()}`;
  for (let attempt = 1; ; attempt++) {
    const response = await reach(path, { method, headers, body, cache: "no-store", credentials: "omit" });
    if (response.ok) return response.json();
    if (!PASSING.has(response.status) || attempt === TRIES) throw await refusal(response);
    await wait(Number(response.headers.get("Retry-After")) || attempt);
  }
}

async function reach(path, request) {
  try {
    return await fetch(path, { ...request, signal: AbortSignal.timeout(TIMEOUT_MS) });
  } catch (error) {
    const why = error.name === "TimeoutError" ? "did not answer in time" : "cannot be reached";
    throw new Refusal(0, "unreachable", `The server ${why}. Check that it runs, then try again.`);
  }
}

async function refusal(response) {
  try {
    const problem = await response.json();
    const kind = String(problem.type ?? "").split(":").pop();
    return new Refusal(response.status, kind, String(problem.detail ?? problem.title ?? response.statusText));
  } catch {
    return new Refusal(response.status, "unknown", `The server answered ${response.status} ${response.statusText}.`);
  }
}

function wait(seconds) {
  return new Promise((done) => setTimeout(done, 1000 * Math.min(seconds, 10)));
}
