// Builds DOM elements. Text always goes in as text nodes; nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with attributes, listeners and children.
 * `on` maps event names to listeners, `data` fills the dataset; null, undefined and false attributes are left out.
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** One of the symbols that index.html defines. */
export function icon(name, extra = "") {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", `icon ${extra}`.trim());
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon only; its label is spoken, and shown as a tooltip. */
export function iconButton(name, label, onClick, props = {}) {
  const { class: more = "", flip = false, ...rest } = props;
  const on = { click: onClick };
  const classes = `icon-button ${more}`.trim();
  return h("button", { type: "button", class: classes, "aria-label": label, title: label, on, ...rest }, icon(name, flip ? "flip" : ""));
}

export const byId = (id) => document.getElementById(id);

/** Make a list hold these elements in this order, moving none that is in its place. */
export function place(list, elements) {
  for (const old of [...list.children]) if (!elements.includes(old)) old.remove();
  elements.forEach((element, i) => {
    if (list.children[i] !== element) list.insertBefore(element, list.children[i] ?? null);
  });
}
