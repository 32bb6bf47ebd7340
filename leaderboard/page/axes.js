// Axes and marks of plots, as inline SVG.

const WIDE = 420, HIGH = 300, LEFT = 44, RIGHT = 14, TOP = 12, BOTTOM = 44;

/** About five round numbers in [low, high]. */
function rounds(low, high) {
  const raw = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((size) => size >= raw * (1 - 1e-9));
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

function linear(low, high, text) {
  const ticks = rounds(low, high).map((tick) => [tick, text(tick)]);
  return { at: (value) => (value - low) / (high - low), ticks };
}

/** A scale for fractions of examples, with a margin around the values. */
function shares(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = Math.max(0.08 * (high - low), 0.01);
  return linear(Math.max(0, low - margin), Math.min(1, high + margin), (tick) => Number((100 * tick).toPrecision(4)));
}

function logarithmic(values, text) {
  const low = Math.log10(Math.min(...values)) - 0.15;
  const high = Math.log10(Math.max(...values)) + 0.15;
  const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, i) => Math.floor(low) + i);
  const leading = high - low > 2 ? [1] : [1, 2, 5];
  const ticks = powers.flatMap((power) => leading.map((n) => n * 10 ** power));
  const inside = ticks.filter((tick) => Math.log10(tick) >= low && Math.log10(tick) <= high);
  return { at: (value) => (Math.log10(value) - low) / (high - low), ticks: inside.map((tick) => [tick, text(tick)]) };
}

/** An empty plot with axes, and the functions that map values to its coordinates. */
function frame(name, [x, xName], [y, yName]) {
  const bottom = HIGH - BOTTOM;
  const across = (value) => LEFT + x.at(value) * (WIDE - LEFT - RIGHT);
  const up = (value) => bottom - y.at(value) * (bottom - TOP);
  const line = (cls, x1, x2, y1, y2) => draw("line", { class: cls, x1, x2, y1, y2 });
  const label = (cls, anchor, place, text) => draw("text", { class: cls, "text-anchor": anchor, ...place }, text);
  const middle = (TOP + bottom) / 2;
  const svg = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "group", "aria-label": name },
    y.ticks.map(([value, text]) => [
      line("grid", LEFT, WIDE - RIGHT, up(value), up(value)),
      label("tick", "end", { x: LEFT - 7, y: up(value) + 4 }, text)]),
    x.ticks.map(([value, text]) => [
      line("axis", across(value), across(value), bottom, bottom + 4),
      label("tick", "middle", { x: across(value), y: bottom + 17 }, text)]),
    line("axis", LEFT, WIDE - RIGHT, bottom, bottom),
    label("name", "middle", { x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 6 }, xName),
    label("name", "middle", { transform: `translate(11 ${middle}) rotate(-90)` }, yName));
  return { svg, across, up };
}

/** The mark of an entry in a plot; it opens the entry. */
function mark(row, text, place, ...shapes) {
  const names = { "data-entry": row.name, "aria-label": text };
  const attributes = { class: "mark", role: "button", tabindex: "-1", transform: place, ...names };
  return draw("g", attributes, draw("title", {}, text), ...shapes);
}

/** The Tab key stops once in a plot; arrow keys move between its marks (a roving tabindex). */
function addKeys(svg) {
  const marks = [...svg.querySelectorAll(".mark")];
  const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -Infinity, End: Infinity };
  marks[0]?.setAttribute("tabindex", "0");
  svg.addEventListener("keydown", (event) => {
    const here = marks.indexOf(event.target);
    if (here < 0 || !Object.hasOwn(steps, event.key)) return;
    const next = Math.min(marks.length - 1, Math.max(0, here + steps[event.key]));
    event.preventDefault();
    marks[here].setAttribute("tabindex", "-1");
    marks[next].setAttribute("tabindex", "0");
    marks[next].focus();
  });
}

const NAMED = 12; // points with a name beside them

/** Points {row, x, y, text}, from left to right. */
function scatter({ svg, across, up }, points) {
  for (const { row, x, y, text } of points.toSorted((a, b) => a.x - b.x)) {
    const place = `translate(${across(x).toFixed(1)} ${up(y).toFixed(1)})`;
    svg.append(mark(row, text, place, draw("circle", { class: "target", r: 9 }), marker(row)));
  }
  svg.append(...names(points.map(({ row, x, y }) => ({ text: row.title, x: across(x), y: up(y) }))));
  addKeys(svg);
}

/** Names of the first points, each at a place where it overlaps no point and no other name, if there is one. */
function names(points) {
  const taken = points.map(({ x, y }) => [x - 5, y - 5, x + 5, y + 5]);
  const isFree = ([left, top, right, bottom]) =>
    left > LEFT && right < WIDE && top > 0 && bottom < HIGH - BOTTOM &&
    taken.every(([l, t, r, b]) => right < l || left > r || bottom < t || top > b);
  return points.slice(0, NAMED).flatMap(({ text, x, y }) => {
    const short = text.length > 18 ? `${text.slice(0, 17)}\u2026` : text;
    const wide = 6.4 * short.length;
    const rights = [[x + 8, y + 4], [x - 8 - wide, y + 4]];
    const others = [x - wide / 2, x - 5].flatMap((left) => [[left, y - 9], [left, y + 17]]);
    const boxes = [...rights, ...others].map(([left, base]) => [left, base - 10, left + wide, base + 3]);
    const box = boxes.find(isFree);
    if (!box) return [];
    taken.push(box);
    return [draw("text", { class: "point-name", x: box[0], y: box[3] - 3, "aria-hidden": "true" }, short)];
  });
}
