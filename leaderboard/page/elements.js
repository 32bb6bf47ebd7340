// Elements, text and numbers. All data of the boards becomes text nodes and attribute values here, never markup.

const SVG = "http://www.w3.org/2000/svg";
const NONE = "\u2014";

const $ = (id) => document.getElementById(id);

// Control characters that are invisible or change the writing direction are shown by their code, as in [U+202E].
const CONTROLS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

function legible(text) {
  return String(text).replace(CONTROLS, (c) => `[U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    node.setAttribute(name, ["title", "aria-label"].includes(name) ? legible(value) : value);
  }
  const present = children.flat(2).filter((child) => child !== null && child !== undefined);
  node.append(...present.map((child) => (child instanceof Node ? child : legible(child))));
  return node;
}

const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const small = (...children) => make("small", {}, ...children);
const muted = (...children) => make("span", { class: "muted" }, ...children);

const isWeb = (url) => ["http:", "https:"].includes(URL.parse(url)?.protocol);

/** A link if the address is http(s), otherwise its text. */
function link(url, text = url) {
  return isWeb(url) ? make("a", { href: url, rel: "noopener noreferrer" }, text) : make("span", {}, text);
}

/** A spec with line breaks allowed after its separators. */
function breakable(spec) {
  return spec.split(/(?<=[:=,/])/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
}

const known = (value) => Number.isFinite(value);
const isShare = (value) => known(value) && value >= 0 && value <= 1;
const percent = (share) => (known(share) ? (100 * share).toFixed(1) : NONE);
const range = (low, high) => `${percent(low)}\u2013${percent(high)}`;
const whole = (value) => value.toLocaleString("en");
const entries = (n) => (n === 1 ? "1 entry" : `${whole(n)} entries`);

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const count = (value) => (known(value) ? compact.format(value) : NONE);

function duration(seconds) {
  if (!known(seconds)) return NONE;
  const units = [["d", 86400], ["h", 3600], ["min", 60]];
  const [unit, size] = units.find(([, length]) => seconds >= 2 * length) ?? ["s", 1];
  return `${(seconds / size).toFixed(1)} ${unit}`;
}

/** An accuracy with its standard deviation over seeds; and its interval, which a reported accuracy does not have. */
const mean = ({ acc, spread }) => (known(spread) ? `${percent(acc)} \u00b1 ${percent(spread)}` : percent(acc));
const interval = ({ low, high }) => (low < high ? range(low, high) : "");

/** Counts of examples, as means over seeds: whole numbers where they are whole. */
const examples = (value) => (known(value) ? (Number.isInteger(value) ? whole(value) : value.toFixed(1)) : NONE);
