/** Requests to this server: JSON both ways, the session's CSRF token, a time limit, one kind of error. */

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";
export const annotator = meta("annotator");

/** status 0: the server was not reached. */
export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
  /** Worth sending again unchanged: not reached, overloaded, restarting. */
  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
  /** The session ended: the request is good, the person has to come in again. */
  get signedOut() {
    return this.status === 401 || this.status === 403;
  }
}

function detailOf(body, status) {
  const detail = body?.detail ?? body?.error;
  if (typeof detail === "string") return detail;
  return Array.isArray(detail) ? detail.map((each) => each.msg ?? String(each)).join("; ") : `the server answered ${status}`;
}

export async function request(method, path, body) {
  let reply, read;
  try {
    reply = await fetch(path, {
      method,
      headers: { "X-CSRF-Token": meta("csrf"), Accept: "application/json", ...(body ? { "Content-Type": "application/json" } : {}) },
      body: body ? JSON.stringify(body) : undefined,
      credentials: "same-origin",
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(20_000),
    });
    read = reply.status === 204 ? null : await reply.json().catch(() => null);
  } catch (error) {
    throw new ApiError(0, String(error));
  }
  if (!reply.ok) throw new ApiError(reply.status, detailOf(read, reply.status));
  return read;
}

/** A random key, also on plain http where crypto.randomUUID is absent. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
