// The table of a board, and its controls.

const MANY = 50; // rows from which on those off the screen are not laid out

/** Columns. key: what to sort by, what has none last; down: the first click puts the largest first. */
const COLUMNS = [
  { id: "rank", label: "Rank", key: (row) => row.rank, cell: rankCell },
  { id: "title", label: "Entry", key: (row) => row.title, cell: (row) => [opener(row), small(kindText(row))] },
  accuracyColumn("clean", "Clean"),
  { id: "bracket", label: "Bracket", hint: "Sort by width", key: bracketWidth, ticks: [0, 50, 100],
    cell: (row) => [make("span", { class: "ends" }, bracketText(row)), bar(row)] },
  accuracyColumn("attacked", "Attacked"),
  accuracyColumn("certified", "Certified"),
  { id: "verdict", label: "Verdict", key: (row) => row.verdict, cell: verdict },
  { id: "architecture", label: "Architecture", key: (row) => row.architecture, cell: architectureCell },
  { id: "extra", label: "Extra data", key: extraData, cell: extraData },
  { id: "passes", label: "Training passes", key: (row) => row.cost?.training_passes,
    cell: (row) => count(row.cost?.training_passes) },
  { id: "seconds", label: "Training time", key: (row) => row.cost?.training_seconds,
    cell: (row) => duration(row.cost?.training_seconds) },
  { id: "status", label: "Status", key: (row) => row.status, cell: (row) => row.status },
];

function accuracyColumn(id, label) {
  return { id, label, key: (row) => row[id]?.acc, down: true, cell: (row) => accuracyCell(row[id]) };
}

/** The family of a model; its size and options on the next line, as far as they fit. */
function architectureCell({ architecture, parameters }) {
  const [family, ...options] = architecture.split(":");
  const size = known(parameters) ? [`${count(parameters)} parameters`] : [];
  return [family || NONE, make("small", { class: "clip", title: architecture }, [...size, ...options].join(", "))];
}

function extraData(row) {
  return row.extra_data ? "yes" : "no";
}

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

function ordering() {
  const id = state.sort.replace("-", "");
  return { column: COLUMNS.find((column) => column.id === id) ?? COLUMNS[0], way: state.sort.startsWith("-") ? -1 : 1 };
}

/** The order that a click on a column's head asks for. */
function nextOrder(id) {
  const { column, way } = ordering();
  const down = column.id === id ? way > 0 : COLUMNS.find((each) => each.id === id).down;
  return down ? `-${id}` : id;
}

/** In the order of the state; equal ones as the board has them, those without a value last. */
function sorted(rows) {
  const { column, way } = ordering();
  const compare = ([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return way * (typeof a === "string" ? collator.compare(a, b) : a - b);
  };
  const keyed = rows.map((row) => [column.key(row) ?? null, row]);
  return keyed.sort(compare).map(([, row]) => row);
}

function buildHead() {
  const cells = COLUMNS.map(({ id, label, hint, ticks }) => {
    const button = make("button", { type: "button", "data-sort": id, title: hint }, label);
    return make("th", { scope: "col", role: "columnheader", class: id }, button, ticks && scale(ticks));
  });
  $("head").append(make("tr", { role: "row" }, cells));
}

function buildFilters() {
  const labelled = (text, control) => make("label", {}, make("span", {}, text), control);
  const search = make("input", { type: "search", id: "q", placeholder: "title, architecture, paper" });
  const selects = FILTERS.map(({ id, label }) => labelled(label, make("select", { id })));
  $("filters").append(labelled("Search", search), ...selects);
  $("filters").addEventListener("input", ({ target }) => change({ [target.id]: target.value }));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
}

/** What the rows of a board leave to choose from, with how many there are of each. */
function offerChoices(board) {
  for (const { id, of, name = String } of FILTERS) {
    const tally = new Map();
    for (const row of board.rows) tally.set(of(row), (tally.get(of(row)) ?? 0) + 1);
    const values = [...tally.keys()].sort(collator.compare);
    const options = values.map((value) => make("option", { value }, `${name(value)} (${tally.get(value)})`));
    $(id).replaceChildren(make("option", { value: "" }, "any"), ...options);
  }
}

function showControls(board, rows) {
  for (const id of NARROWING) {
    if ($(id).value !== state[id]) $(id).value = state[id];
  }
  const active = NARROWING.filter((id) => state[id]).length;
  $("active").textContent = active ? `(${active} active)` : "";
  $("count").textContent = `${whole(rows.length)} of ${entries(board.rows.length)} shown`;
  $("reset").hidden = active === 0;
}

/** The line of an entry, drawn once. */
function lineOf(board, row) {
  if (!board.lines.has(row)) {
    const cells = COLUMNS.map(({ id, label, cell }) => {
      const heads = id === "title" ? ["th", { scope: "row", role: "rowheader" }] : ["td", { role: "cell" }];
      return make(heads[0], { ...heads[1], class: id, "data-label": label }, cell(row));
    });
    board.lines.set(row, make("tr", { role: "row", class: row.rank === 1 && "leading" }, cells));
  }
  return board.lines.get(row);
}

function showTable(board, rows) {
  const visible = sorted(rows).slice(0, limit);
  $("body").classList.toggle("many", visible.length > MANY);
  $("body").replaceChildren(...visible.map((row) => lineOf(board, row)));
  const { column, way } = ordering();
  for (const head of $("head").querySelectorAll("th")) {
    const order = way > 0 ? "ascending" : "descending";
    head.setAttribute("aria-sort", head.classList.contains(column.id) ? order : "none");
  }
  const left = rows.length - visible.length;
  $("more").hidden = left === 0;
  $("show-more").textContent = `Show ${Math.min(PAGE, left)} more`;
  $("show-all").textContent = `Show all ${whole(rows.length)}`;
}

/** More rows, and the focus on the first new one: the button may be gone. */
function showMore(rows) {
  const before = limit;
  limit = rows;
  render();
  $("body").querySelectorAll(".opener")[before]?.focus();
}
