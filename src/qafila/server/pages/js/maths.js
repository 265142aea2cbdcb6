// TeX in Markdown: $…$ and \(…\) in a line, $$…$$ and \[…\] displayed. KaTeX is fetched when the first formula appears,
// and makes MathML, which needs neither fonts nor inline styles.

const DISPLAY = [["$$", "$$"], ["\\[", "\\]"]];

function inlineRule(state, silent) {
  const { src, pos } = state;
  const pair = [...DISPLAY, ["\\(", "\\)"], ["$", "$"]].find(([open]) => src.startsWith(open, pos));
  if (pair === undefined) return false;
  const [open, close] = pair;
  let end = src.indexOf(close, pos + open.length);
  while (end > 0 && open.startsWith("$") && src[end - 1] === "\\") end = src.indexOf(close, end + close.length);
  if (end < 0) return false;
  const tex = src.slice(pos + open.length, end);
  if (tex.trim() === "") return false;
  // Prices are not formulas: as in Pandoc, $ opens before and closes after something that is no space, and no digit follows.
  if (open === "$" && (/^\s|\s$/.test(tex) || /\d/.test(src[end + 1] ?? ""))) return false;
  if (!silent) {
    const token = state.push("math", "math", 0);
    token.content = tex.trim();
    token.meta = { display: DISPLAY.includes(pair) };
  }
  state.pos = end + close.length;
  return true;
}

function blockRule(state, start, endLine, silent) {
  const lineAt = (line) => state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]);
  const first = lineAt(start);
  const pair = DISPLAY.find(([open]) => first.startsWith(open));
  if (pair === undefined || state.sCount[start] - state.blkIndent >= 4) return false;
  const lines = [];
  for (let line = start; line < endLine && !state.isEmpty(line); line += 1) {
    const text = line === start ? first.slice(2) : lineAt(line);
    const close = text.indexOf(pair[1]);
    if (close < 0) {
      lines.push(text);
      continue;
    }
    if (text.slice(close + 2).trim() !== "") return false; // words follow: a formula inside a paragraph
    if (silent) return true;
    lines.push(text.slice(0, close));
    const token = state.push("math_block", "math", 0);
    token.block = true;
    token.content = lines.join("\n").trim();
    token.map = [start, line + 1];
    state.line = line + 1;
    return true;
  }
  return false; // not closed, or not yet: shown as written
}

/** Teach a markdown-it to find formulas. They are rendered as their source, which `renderMaths` replaces. */
export function mathsPlugin(md) {
  const source = (token, display) =>
    `<${display ? "div" : "span"} class="math${display ? " display" : ""}" dir="ltr">${md.utils.escapeHtml(token.content)}` +
    `</${display ? "div" : "span"}>`;
  md.inline.ruler.before("escape", "math", inlineRule);
  md.block.ruler.before("fence", "math_block", blockRule, { alt: ["paragraph", "blockquote", "list"] });
  // A displayed formula in a line is a span as well: a div may not stand inside a paragraph.
  md.renderer.rules.math = (tokens, i) =>
    source(tokens[i], false).replace('class="math"', tokens[i].meta.display ? 'class="math display"' : 'class="math"');
  md.renderer.rules.math_block = (tokens, i) => source(tokens[i], true);
}

let loading = null;

function load() {
  loading ??= import("../vendor/katex/katex.min.js");
  return loading;
}

function render(element, sanitiseMaths) {
  const tex = element.textContent;
  try {
    const html = globalThis.katex.renderToString(tex, {
      displayMode: element.classList.contains("display"),
      output: "mathml",
      throwOnError: true,
      strict: "ignore",
      trust: false,
      maxExpand: 200,
      maxSize: 20,
    });
    element.replaceChildren(sanitiseMaths(html));
    element.dataset.tex = tex;
  } catch {
    element.classList.add("failed"); // what KaTeX cannot read stays as it was written
  }
}

/** Replace the formulas below `root` by MathML: at once when KaTeX is here, else when it has come. */
export function renderMaths(root, sanitiseMaths) {
  const formulas = [...root.querySelectorAll(".math")];
  if (formulas.length === 0) return;
  if (globalThis.katex) for (const element of formulas) render(element, sanitiseMaths);
  else load().then(() => formulas.forEach((element) => render(element, sanitiseMaths)));
}
