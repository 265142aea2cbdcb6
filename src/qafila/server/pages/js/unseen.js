// Letters that show nothing, or turn others round: with them one text looks like another. Where people decide by a
// text, they stand there by their numbers. Joiners (U+200C, U+200D) are left: Arabic and emoji are written with them.

const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\u{e0000}-\u{e007f}]/gu;

/** The text, with each such letter written as <U+202E>. */
export const seen = (text) =>
  text.replace(UNSEEN, (one) => `<U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}>`);
