// The table of a board: its order, its rows and its controls.

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

function showHead(columns) {
  const cells = columns.map(({ id, label, hint, ticks }) => {
    const button = make("button", { type: "button", "data-sort": id, title: hint }, label);
    return make("th", { scope: "col", role: "columnheader", class: id }, button, ticks && scale(ticks));
  });
  const name = make("span", { class: "unseen" }, "Compare");
  const pin = make("th", { scope: "col", role: "columnheader", class: "pin" }, name);
  $("head").replaceChildren(make("tr", { role: "row" }, pin, cells));
}

function buildFilters() {
  const labelled = (text, control) => make("label", {}, make("span", {}, text), control);
  const search = make("input", { type: "search", id: "q", placeholder: "title, architecture, paper" });
  const selects = FILTERS.map(({ id, label }) => labelled(label, make("select", { id })));
  $("filters").append(labelled("Search", search), ...selects);
  $("filters").addEventListener("input", ({ target }) => change({ [target.id]: target.value }));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
}

/** The values of each filter in a board, with the number of rows of each. A filter without a choice is hidden. */
function offerChoices(board) {
  for (const { id, of, name = String } of FILTERS) {
    const tally = new Map();
    for (const row of board.rows) tally.set(of(row), (tally.get(of(row)) ?? 0) + 1);
    const values = [...tally.keys()].sort(collator.compare);
    const options = values.map((value) => make("option", { value }, `${name(value)} (${tally.get(value)})`));
    $(id).replaceChildren(make("option", { value: "" }, "any"), ...options);
    $(id).parentElement.hidden = values.length < 2;
  }
  $("filter-box").hidden = board.rows.length < 2;
}

function showControls(board, rows) {
  for (const id of NARROWING) {
    if ($(id).value !== state[id]) $(id).value = state[id];
  }
  const active = NARROWING.filter((id) => state[id]).length;
  $("active").textContent = active ? `(${active} active)` : "";
  $("count").textContent = `${whole(rows.length)} of ${entries(board.rows.length)} shown`;
  $("reset").hidden = active === 0;
  $("copied").textContent = "";
}

function tableRow(row, columns) {
  const cells = columns.map(({ id, label, cell }) => {
    const [tag, attributes] = id === "title" ? ["th", { scope: "row", role: "rowheader" }] : ["td", { role: "cell" }];
    return make(tag, { ...attributes, class: id, "data-label": label }, cell(row));
  });
  const pin = make("td", { role: "cell", class: "pin" }, pinBox(row));
  return make("tr", { role: "row", class: row.rank === 1 && "leading" }, pin, cells);
}

function showTable(board, rows) {
  const { shown, alike } = columnsOf(board);
  if ($("board").dataset.suite !== board.suite) {
    showHead(shown);
    $("board").dataset.suite = board.suite;
    $("board").classList.toggle("many", shown.length > 12);
    $("alike").textContent = legible(alikeText(board, alike));
  }
  const ordered = sorted(rows);
  const body = ordered.map((row) => (row.element ??= tableRow(row, shown)));
  $("body").replaceChildren(...body);
  const first = ordering().column === COLUMNS[0] ? ordered.findIndex((row) => row.rank === null) : -1;
  body.forEach((element, at) => element.classList.toggle("unranked", at > 0 && at === first)); // starts its part
  $("none").hidden = rows.length > 0;
  $("none").textContent = board.rows.length ? "No entry matches the filters." : "This board has no entries yet.";
  const { column, way } = ordering();
  for (const head of $("head").querySelectorAll("th:not(.pin)")) {
    const order = way > 0 ? "ascending" : "descending";
    head.setAttribute("aria-sort", head.classList.contains(column.id) ? order : "none");
  }
}
