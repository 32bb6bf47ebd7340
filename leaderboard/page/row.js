// How a row of a board is shown, in the table, the plots and the dialog: verdict, rank, bracket.

const SHAPES = { // of verdicts, in the table and in the plots
  "no-warnings": ["circle", { r: 4.5 }],
  suspect: ["path", { d: "M0 -5.5L5.2 4H-5.2Z" }],
  unreliable: ["path", { d: "M-4 -4L4 4M-4 4L4 -4" }],
  unchecked: ["circle", { r: 4 }], // and any other
};
const verdictClass = (row) => (Object.hasOwn(SHAPES, row.verdict) ? row.verdict : "unchecked");
const verdictText = (verdict) => (Object.hasOwn(VERDICT_TEXTS, verdict) ? VERDICT_TEXTS[verdict] : verdict);

function marker(row) {
  const [tag, attributes] = SHAPES[verdictClass(row)];
  return draw(tag, { class: `marker ${verdictClass(row)}`, ...attributes });
}

function verdict(row) {
  const icon = draw("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, marker(row));
  return make("span", { class: `verdict ${verdictClass(row)}` }, icon, verdictText(row.verdict));
}

const ranks = ({ rank_low: low, rank_high: high, kind }) =>
  `${low === high ? low : `${low}\u2013${high}`}${kind === "weights" ? " (weights)" : ""}`;

/** The rank; of a reported entry its position, which is no rank. */
function rankText(row) {
  if (row.rank !== null) return ranks(row);
  return known(row.position) ? `(${row.position})` : NONE;
}

function rankCell(row) {
  if (row.rank === null) {
    return known(row.position) ? [rankText(row), small("as reported")] : [muted(NONE), small("no claim")];
  }
  const best = make("span", { class: "unseen" }, ", no entry is significantly better");
  return row.rank === 1 ? [ranks(row), best] : ranks(row);
}

/** What was measured, which its intervals are of: a recipe, or weights. */
function kindText({ kind, seeds }) {
  if (kind !== "recipe") return kind === "weights" ? "fixed weights" : kind;
  return seeds.length === 1 ? "weights of 1 seed" : `recipe, ${seeds.length} seeds`;
}

function openCell({ open, truncated }) {
  if (!known(open)) return muted(NONE);
  return truncated ? [whole(Math.round(open)), small("cut by time")] : whole(Math.round(open));
}

const KINDS = [ // of certificates, as leaderboard/board_data.py says
  ["proven", "proven"], ["again", "certified again"], ["solver", "trusted solver"], ["open", "open again"],
  ["unchecked", "not checked"],
];
const certificatesText = (certificates) => KINDS.filter(([kind]) => certificates[kind] > 0)
  .map(([kind, text]) => `${examples(certificates[kind])} ${text}`).join(", ");

const accuracyCell = (estimate) => (estimate ? [mean(estimate), small(interval(estimate))] : muted(NONE));

function bracketText({ certified, attacked }) {
  if (certified && attacked) return `[${percent(certified.acc)}, ${percent(attacked.acc)}]`;
  if (attacked) return `\u2264 ${percent(attacked.acc)}`;
  return certified ? `\u2265 ${percent(certified.acc)}` : NONE;
}

const bracketWidth = ({ certified, attacked }) => (certified && attacked ? attacked.acc - certified.acc : null);

/** The interval of the robust accuracy. An end that was not measured is drawn at 0 or at the clean accuracy. */
function bar({ certified, attacked, clean }) {
  if (!certified && !attacked) return null;
  const at = (share) => 100 * Math.min(1, Math.max(0, share));
  const [low, high] = [at(certified?.acc ?? 0), at(attacked?.acc ?? clean?.acc ?? 1)];
  const between = certified && attacked ? "span" : "span open";
  return draw("svg", { class: "bar", "aria-hidden": "true" },
    certified && whisker(low, at(certified.low)),
    attacked && whisker(high, at(attacked.high)),
    draw("rect", { class: between, x: `${low}%`, width: `${Math.max(0, high - low)}%`, y: "28%", height: "44%" }),
    certified && bracketEnd(low, 1),
    attacked && bracketEnd(high, -1),
    clean && draw("circle", { class: "clean", cx: `${at(clean.acc)}%`, cy: "50%", r: 3 }));
}

function whisker(from, to) {
  if (from === to) return [];
  const line = (x1, x2, y1, y2) => draw("line", { class: "whisker", x1: `${x1}%`, x2: `${x2}%`, y1, y2 });
  return [line(from, to, "50%", "50%"), line(to, to, "30%", "70%")];
}

function bracketEnd(x, way) {
  return draw("svg", { class: "end", x: `${x}%`, y: "50%" }, draw("path", { d: `M${4 * way} -7H0V7H${4 * way}` }));
}

function scale(ticks) {
  return make("span", { class: "scale", "aria-hidden": "true" }, ticks.map((tick) => make("span", {}, tick)));
}

const opener = (row) => make("button", { type: "button", class: "opener", "data-entry": row.name }, row.title);
