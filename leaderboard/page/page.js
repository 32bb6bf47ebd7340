// The whole page: rendering, and event listeners.

const drawn = {}; // the state that a part of the page was drawn for

function isStale(part, keys) {
  const before = drawn[part];
  drawn[part] = JSON.stringify(keys.map((key) => state[key]));
  return drawn[part] !== before;
}

function render() {
  if (!boards.has(state.suite)) [state.suite] = boards.keys();
  const board = boards.get(state.suite);
  if ($("suite").textContent !== board.suite) showSuite(board);
  for (const { id } of FILTERS) {
    if (![...$(id).options].some((option) => option.value === state[id])) state[id] = ""; // from the link of a board
  }
  const rows = matching(board);
  showControls(board, rows);
  if (isStale("table", ["suite", ...NARROWING, "sort"])) showTable(board, rows);
  if (isStale("plots", ["suite", ...NARROWING, "cost", "curve", "attack"])) showPlots(board, rows);
  showPins(board);
  showComparison(board);
  showEntry(board);
}

function showSuite(board) {
  document.title = `${board.suite} \u2013 robust-bracket leaderboard`;
  $("suite").textContent = $("name").textContent = board.suite;
  $("summary").textContent = legible(board.summary);
  $("rule").textContent = legible(board.rule);
  for (const each of $("suites").children) each.setAttribute("aria-current", String(each.textContent === board.suite));
  const left = board.left_out.length;
  $("left-out").hidden = left === 0;
  $("left-out-title").textContent = `${entries(left)} left out, because ${left === 1 ? "it" : "they"} cannot be read`;
  $("left-out-list").replaceChildren(...board.left_out.map((text) => make("li", {}, text)));
  offerChoices(board);
}

function clicked({ target }) {
  const data = target.closest("[data-entry], [data-sort], [data-set], [data-unpin], [data-copy]")?.dataset ?? {};
  if (data.entry !== undefined) change({ entry: data.entry }, true);
  else if (data.sort !== undefined) change({ sort: nextOrder(data.sort) });
  else if (data.set !== undefined) showSet(data.set);
  else if (data.unpin !== undefined) togglePin(data.unpin);
  else if (data.copy !== undefined) copyView(data.copy);
  else if (target.id === "reset") change(Object.fromEntries(NARROWING.map((key) => [key, ""])));
  else if (target.id === "compare") change({ view: "compare" }, true);
  else if (target.id === "clear") changePins([]);
  else if (target.matches("dialog")) target.close(); // a click outside it
}

/** Show a set of examples of the comparison; the focus goes to its button, which was made anew. */
function showSet(set) {
  const { set: before } = state;
  change({ set });
  $("survival").querySelector(`[data-set="${set ? "" : before}"]`)?.focus();
}

function pressed(event) {
  if (!event.target.matches(".mark") || !["Enter", " "].includes(event.key)) return;
  event.preventDefault();
  clicked(event);
}

function buildTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = document.documentElement.dataset;
  const isDark = () => (chosen.theme ? chosen.theme === "dark" : system.matches);
  const show = () => $("theme").setAttribute("aria-pressed", String(isDark()));
  $("theme").addEventListener("click", () => {
    chosen.theme = isDark() ? "light" : "dark";
    show();
  });
  system.addEventListener("change", show);
  show();
}

function start() {
  buildTheme();
  if (!boards.size) {
    $("suites").textContent = "There are no entries yet.";
    return;
  }
  const tabs = [...boards.keys()].map((suite) => make("a", { href: `#${new URLSearchParams({ suite })}` }, suite));
  $("suites").append(...tabs);
  buildFilters();
  buildPlots();
  $("main").hidden = false;
  $("filter-box").open = matchMedia("(min-width: 48rem)").matches;
  $("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address holds the state
    $("entries").focus();
  });
  $("entry").addEventListener("close", entryClosed);
  $("comparison").addEventListener("close", () => state.view && change({ view: "", set: "" }));
  $("body").addEventListener("change", ({ target }) => togglePin(target.dataset.pin));
  $("cite").addEventListener("click", () => copyText($("bibtex").textContent, $("cited")));
  document.addEventListener("click", clicked);
  document.addEventListener("keydown", pressed);
  addEventListener("hashchange", () => {
    clearTimeout(writing);
    state = readAddress();
    render();
  });
  render();
}

start();
