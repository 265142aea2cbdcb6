// Asking the server for something, with what goes wrong shown where the reader is.

import { ApiError } from "./api.js";
import { askKey } from "./dialogs.js";
import { errorNotice } from "./notices.js";

/** Show in `slot` what went wrong, with a button that tries again. */
export function showFailure(slot, error, retry) {
  const known = error instanceof ApiError ? error : new ApiError("page", error.message);
  const told = { kind: known.kind, message: known.message, retryAfter: known.retryAfter, at: Date.now() };
  slot.replaceChildren(errorNotice(told, retry));
}

/**
 * Do something that asks the server, then `done` with what it answered; a key is asked for where the server wants one.
 * Resolves with whether it went well.
 */
export async function attempt(slot, action, done = () => {}) {
  let answer;
  try {
    answer = await action();
  } catch (error) {
    if (error.kind === "key" && (await askKey(true))) return attempt(slot, action, done);
    showFailure(slot, error, () => attempt(slot, action, done));
    return false;
  }
  slot.replaceChildren();
  done(answer);
  return true;
}
