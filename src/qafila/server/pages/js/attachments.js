// Text files that go along with a message.

import { bytes, t } from "./i18n.js";

// The file becomes part of the prompt: more than this no model that runs here would read in one go.
export const MOST_BYTES = 256_000;
const MOST_FILES = 8;

/** The file's text. Throws an Error whose message can be shown. */
async function readText(file) {
  if (file.size > MOST_BYTES) throw new Error(t("fileTooLarge", { name: file.name, most: bytes(MOST_BYTES) }));
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(t("fileNotText", { name: file.name }));
  }
  if (text.includes("\0")) throw new Error(t("fileNotText", { name: file.name }));
  return { name: file.name, size: file.size, text };
}

/** Add files to a list of attachments; what cannot be added is told to `complain`, one message each. */
export async function attach(attachments, files, complain) {
  for (const file of files) {
    try {
      if (attachments.length >= MOST_FILES) throw new Error(t("tooManyFiles", { n: MOST_FILES }));
      attachments.push(await readText(file));
    } catch (error) {
      complain(error.message);
    }
  }
}
