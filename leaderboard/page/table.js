// The table of a board, and its controls.

/** Columns. key: to sort by, rows without one are last; down: the first click sorts in descending order. */
const COLUMNS = [
  { id: "rank", label: "Rank", key: (row) => row.rank, cell: rankCell },
  { id: "title", label: "Entry", key: (row) => row.title, cell: (row) => [opener(row), small(kindText(row))] },
  accuracyColumn("clean", "Clean"),
  { id: "bracket", label: "Bracket", hint: "Sort by width", key: bracketWidth, ticks: [0, 50, 100],
    cell: (row) => [make("span", { class: "ends" }, bracketText(row)), bar(row)] },
  { ...accuracyColumn("attacked", "Attacked"), cell: attackedCell },
  { ...accuracyColumn("certified", "Certified"), cell: certifiedCell },
  { id: "open", label: "Open", hint: "Examples neither certified nor broken", key: (row) => row.open, cell: openCell },
  { id: "verdict", label: "Verdict", key: (row) => row.verdict, cell: verdict },
  { id: "architecture", label: "Architecture", key: (row) => row.architecture, cell: architectureCell },
  { id: "extra", label: "Extra data", key: extraData, cell: extraData },
  { id: "epochs", label: "Epochs", key: (row) => row.cost?.training_epochs,
    cell: (row) => (known(row.cost?.training_epochs) ? whole(row.cost.training_epochs) : NONE) },
  { id: "passes", label: "Training passes", key: (row) => row.cost?.training_passes,
    cell: (row) => count(row.cost?.training_passes) },
  { id: "seconds", label: "Training time", key: (row) => row.cost?.training_seconds,
    cell: (row) => duration(row.cost?.training_seconds) },
  { id: "status", label: "Status", key: (row) => row.status, cell: statusCell },
];

function accuracyColumn(id, label) {
  return { id, label, key: (row) => row[id]?.acc, down: true, cell: (row) => accuracyCell(row[id]) };
}

function attackedCell({ attacked, attacked_by: by }) {
  return [accuracyCell(attacked), by.length ? small(`by ${by.join(", ")}`) : []];
}

/** How the certificates were checked stands below the share that counts. */
function certifiedCell({ certified, certificates }) {
  return [accuracyCell(certified), certificates ? small(certificatesText(certificates)) : []];
}

/** The family of a model; on the next line its size and options, cut off at the width of the column. */
function architectureCell({ architecture, parameters }) {
  const [family, ...options] = architecture.split(":");
  const size = known(parameters) ? [`${count(parameters)} params`] : [];
  return [family || NONE, make("small", { class: "clip", title: architecture }, [...size, ...options].join(", "))];
}

function statusCell({ status }) {
  return status === "not re-checkable" ? [status, small("weights not published")] : status;
}

function extraData(row) {
  return row.extra_data ? "yes" : "no";
}

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

function ordering() {
  const id = state.sort.replace("-", "");
  return { column: COLUMNS.find((column) => column.id === id) ?? COLUMNS[0], way: state.sort.startsWith("-") ? -1 : 1 };
}

/** The order after a click on the header of a column. */
function nextOrder(id) {
  const { column, way } = ordering();
  const down = column.id === id ? way > 0 : COLUMNS.find((each) => each.id === id).down;
  return down ? `-${id}` : id;
}

/** Rows in the order of the state; a stable sort, with rows without a value last. */
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

/** The values of each filter in a board, with the number of rows of each. */
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

function tableRow(row) {
  const cells = COLUMNS.map(({ id, label, cell }) => {
    const [tag, attributes] = id === "title" ? ["th", { scope: "row", role: "rowheader" }] : ["td", { role: "cell" }];
    return make(tag, { ...attributes, class: id, "data-label": label }, cell(row));
  });
  return make("tr", { role: "row", class: row.rank === 1 && "leading" }, cells);
}

function showTable(rows) {
  $("body").replaceChildren(...sorted(rows).map((row) => (row.element ??= tableRow(row))));
  const { column, way } = ordering();
  for (const head of $("head").querySelectorAll("th")) {
    const order = way > 0 ? "ascending" : "descending";
    head.setAttribute("aria-sort", head.classList.contains(column.id) ? order : "none");
  }
}
