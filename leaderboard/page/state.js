// The boards, and what is shown of them. The state is the fragment of the address, so that a view can be shared.

const boards = new Map([...document.querySelectorAll("script[data-suite]")].map(({ dataset, textContent }) => {
  const board = JSON.parse(textContent);
  board.rows.forEach(prepare); // the order of the rows is that of every format
  return [dataset.suite, board];
}));

function prepare(row, place) {
  row.place = place;
  for (const key of ["clean", "attacked", "certified"]) {
    if (!isShare(row[key]?.acc)) row[key] = null;
  }
  row.words = [row.title, row.name, row.architecture, row.threat, row.paper, row.note].join(" ").toLowerCase();
}

/** The order of magnitude of the passes of training. */
function budget(row) {
  const passes = row.cost?.training_passes;
  return passes > 0 ? String(Math.floor(Math.log10(passes))) : "unknown";
}

function budgetName(power) {
  return power === "unknown" ? power : `${count(10 ** power)} to ${count(10 ** (Number(power) + 1))} passes`;
}

const FILTERS = [
  { id: "norm", label: "Norm", of: (row) => row.norm },
  { id: "architecture", label: "Architecture", of: (row) => row.architecture.split(":")[0] || "unknown" },
  { id: "certified", label: "Certified", of: (row) => (row.certified ? "certified" : "not certified") },
  { id: "verdict", label: "Verdict", of: (row) => row.verdict, name: verdictText },
  { id: "extra", label: "Extra data", of: (row) => dataText(row).split(",")[0] },
  { id: "status", label: "Status", of: (row) => row.status },
  { id: "budget", label: "Training budget", of: budget, name: budgetName },
];
const NARROWING = ["q", ...FILTERS.map((filter) => filter.id)];
const KEYS = ["suite", ...NARROWING, "sort", "cost", "curve", "attack", "pins", "view", "set", "entry"];

let state = readAddress();
let writing;

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(KEYS.map((key) => [key, given.get(key) ?? ""]));
}

const address = () => `#${new URLSearchParams(Object.entries(state).filter(([, value]) => value))}`;

/** Change what is shown, and the address with it; with `step` as a new entry of the history. */
function change(changes, step = false) {
  state = { ...state, ...changes };
  clearTimeout(writing);
  if (step) history.pushState(null, "", address());
  else writing = setTimeout(() => history.replaceState(null, "", address()), 150); // browsers limit the rate
  render();
}

/** The rows that match the filters and the search, in the order of the board. */
function matching(board) {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const active = FILTERS.filter((filter) => state[filter.id]);
  const fits = (row) => active.every((filter) => filter.of(row) === state[filter.id]);
  return board.rows.filter((row) => fits(row) && words.every((word) => row.words.includes(word)));
}
