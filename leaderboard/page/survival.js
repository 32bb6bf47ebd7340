// Which examples survive which of the compared entries, with the images of those in one set.

const PAGE = 24; // examples that are shown at once

/** The bits of base64, the highest first, as an array of 0 and 1. */
function bitsOf(text) {
  return Array.from(atob(text), (c) => c.charCodeAt(0).toString(2).padStart(8, "0")).join("").split("").map(Number);
}

/** For each example in how many seeds it is robust, and certified. */
function talliesOf(outcome, n) {
  const tally = (columns) => {
    const bits = columns.map(bitsOf);
    return Array.from({ length: n }, (_, example) => bits.reduce((sum, column) => sum + column[example], 0));
  };
  return { seeds: outcome.seeds.length, robust: tally(outcome.robust), certified: tally(outcome.certified) };
}

/** An example survives an entry if it does so in more than half of its seeds. */
const survives = ({ robust, seeds }, example) => 2 * robust[example] > seeds;

/** Set of entries, as 1 and 0 for each -> the examples that survive just these; all first, none last. */
function patternsOf(tallies, n) {
  const found = Map.groupBy(Array.from({ length: n }, (_, example) => example), (example) =>
    tallies.map((tally) => Number(survives(tally, example))).join(""));
  const place = (pattern) => (pattern.includes("0") ? (pattern.includes("1") ? 1 : 2) : 0);
  return [...found].sort(([a, inA], [b, inB]) => place(a) - place(b) || inB.length - inA.length);
}

function survivalSection(board, rows, comparisons, images) {
  const have = rows.map((row, i) => ({ row, i, outcome: comparisons.outcomes.find(({ name }) => name === row.name) }))
    .filter(({ outcome }) => outcome);
  if (have.length < 2) return make("section", { id: "survival" });
  const n = Math.min(comparisons.labels.length, ...have.flatMap(({ row }) => row.seeds.map((seed) => seed.n_examples)));
  const tallies = have.map(({ outcome }) => talliesOf(outcome, n));
  const patterns = patternsOf(tallies, n);
  const chosen = patterns.find(([pattern]) => pattern === state.set);
  const lines = patterns.map(([pattern, inside]) => [
    patternText(pattern, have), ...[...pattern].map((bit) => outcomeMark(bit === "1")), whole(inside.length),
    percent(inside.length / n), shareBar(inside.length / n), setButton(pattern, have),
  ]);
  const heads = ["Survive", ...have.map(({ i }) => letter(i)), "Examples", "%",
    make("span", { class: "unseen" }, "Share"), make("span", { class: "unseen" }, "Images")];
  const several = have.some(({ outcome }) => outcome.seeds.length > 1);
  return make("section", { id: "survival" }, make("h3", {}, "Who survives what"),
    make("p", { class: "muted" }, `The first ${whole(n)} test examples, under everything that attacked.` +
      (several ? " An example survives a recipe if it does so in more than half of its seeds." : "")),
    grid("Who survives what", heads, lines),
    chosen ? gallery(chosen, have, tallies, { labels: comparisons.labels, images }) : null);
}

function patternText(pattern, have) {
  const letters = have.filter((_, i) => pattern[i] === "1").map(({ i }) => LETTERS[i]);
  if (!letters.length) return "none";
  if (letters.length < have.length) return `only ${letters.join(" and ")}`;
  return have.length === 2 ? "both" : "all";
}

function outcomeMark(survived) {
  const icon = draw("svg", { class: "outcome", viewBox: "-7 -7 14 14", "aria-hidden": "true" },
    draw("circle", { class: survived ? "survived" : "fell", r: 4.5 }));
  return [icon, make("span", { class: "unseen" }, survived ? "survives" : "broken")];
}

function shareBar(share) {
  return draw("svg", { class: "share", "aria-hidden": "true" },
    draw("rect", { class: "part", width: `${100 * share}%`, height: "100%" }));
}

function setButton(pattern, have) {
  const open = state.set === pattern;
  const name = `${open ? "Hide" : "Show"} the examples that survive ${patternText(pattern, have)}`;
  return make("button", { type: "button", class: "quiet small", "data-set": open ? "" : pattern,
    "aria-expanded": String(open), "aria-label": name }, open ? "Hide" : "Show");
}

/** The examples of a set, PAGE at a time: the image, and what each entry makes of it. */
function gallery([pattern, inside], have, tallies, data) {
  const heads = [make("th", { scope: "col" }, "Example"),
    ...have.map(({ row, i }) => make("th", { scope: "col" }, letter(i), " ", row.title))];
  const body = make("tbody");
  const more = make("button", { type: "button", class: "quiet" });
  const addPage = () => {
    const shown = body.children.length;
    body.append(...inside.slice(shown, shown + PAGE).map((example) => galleryRow(example, have, tallies, data)));
    const left = inside.length - body.children.length;
    more.hidden = left === 0;
    more.textContent = `Show ${whole(Math.min(left, PAGE))} more of ${whole(left)}`;
  };
  more.addEventListener("click", addPage);
  addPage();
  const title = `Examples that survive ${patternText(pattern, have)}`;
  return make("div", { class: "gallery" }, make("h4", {}, title),
    data.images ? make("p", { class: "muted" },
      `For each entry the adversarial example and its difference from the original, ${data.images.scale}.`) : null,
    make("div", { class: "scroll", role: "region", "aria-label": title, tabindex: "0" },
      make("table", {}, make("caption", { class: "unseen" }, title), make("thead", {}, make("tr", {}, heads)), body)),
    more);
}

function galleryRow(example, have, tallies, { labels, images }) {
  const name = `test example ${example}`;
  const original = images && example < images.shown ? tile(images, images.originals, example, 0, 1, name) : null;
  const cells = have.map(({ row }, k) => {
    const found = images ? witness(images, row.name, example) : { tiles: [], text: "" };
    const texts = [outcomeText(tallies[k], example), found.text].filter(Boolean).map((text) => small(text));
    return make("td", {}, make("div", { class: "tiles" }, found.tiles, make("div", {}, texts)));
  });
  const about = [small(`no. ${example}`), small(`label ${labels[example]}`)];
  return make("tr", {}, make("th", { scope: "row" }, make("div", { class: "tiles" }, original, make("div", {}, about))),
    cells);
}

function outcomeText({ robust, certified, seeds }, example) {
  const word = (count) => (seeds > 1 ? ` in ${count} of ${seeds} seeds` : "");
  if (!robust[example]) return `broken${seeds > 1 ? " in all seeds" : ""}`;
  return `survives${word(robust[example])}${certified[example] ? `, certified${word(certified[example])}` : ""}`;
}

/** The images of an entry for an example, and who found them. */
function witness(images, name, example) {
  const own = images.witnesses.find((each) => each.name === name);
  const at = own ? own.index.indexOf(example) : -1;
  if (at < 0) return { tiles: [], text: "" };
  const by = own.sources[own.source[at]];
  return { text: `by ${by}`, tiles: [
    tile(images, own.file, example, 0, 2, `adversarial example of ${example}, by ${by}`),
    tile(images, own.file, example, 1, 2, `its difference from example ${example}`)] };
}

/** One image of a sheet of leaderboard/witness_images.py: tile `example` of one of its parts. */
function tile({ width, height, across, shown }, file, example, part, parts, name) {
  const rows = Math.ceil(shown / across);
  const [x, y] = [width * (example % across), height * (part * rows + Math.floor(example / across))];
  return draw("svg", { class: "tile", viewBox: `${x} ${y} ${width} ${height}`, role: "img", "aria-label": name },
    draw("image", { href: file, width: width * across, height: height * rows * parts }));
}
