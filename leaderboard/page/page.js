// The whole page: what is drawn when, and who listens to what.

const drawn = {}; // what the table and the plots show

/** Would a part of the page look different than when this was last asked? */
function isStale(part, ...shown) {
  const before = drawn[part];
  drawn[part] = JSON.stringify(["suite", ...NARROWING].map((key) => state[key]).concat(shown));
  return drawn[part] !== before;
}

function render() {
  if (!blocks.has(state.suite)) [state.suite] = blocks.keys();
  const board = load(state.suite);
  if ($("suite").textContent !== board.suite) showSuite(board);
  for (const { id } of FILTERS) {
    if (![...$(id).options].some((option) => option.value === state[id])) state[id] = ""; // a link of another board
  }
  const rows = narrowed(board);
  showControls(board, rows);
  if (isStale("table", state.sort, limit)) showTable(board, rows);
  if (isStale("plots", state.cost, state.curve)) showPlots(board, rows);
  showEntry(board);
}

function showSuite(board) {
  limit = PAGE;
  document.title = `${board.suite} \u2013 robust-bracket leaderboard`;
  $("suite").textContent = $("name").textContent = board.suite;
  $("summary").textContent = legible(board.summary);
  $("rule").textContent = legible(board.rule);
  for (const each of $("suites").children) each.setAttribute("aria-current", String(each.textContent === board.suite));
  offerChoices(board);
}

function clicked({ target }) {
  const { entry, sort } = target.closest("[data-entry], [data-sort]")?.dataset ?? {};
  if (entry !== undefined) change({ entry }, true);
  else if (sort !== undefined) change({ sort: nextOrder(sort) });
  else if (target.id === "reset") change(Object.fromEntries(NARROWING.map((key) => [key, ""])));
  else if (target.id === "show-more") showMore(limit + PAGE);
  else if (target.id === "show-all") showMore(Infinity);
  else if (target.id === "entry") target.close(); // beside the dialog
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
  if (!blocks.size) {
    $("suites").textContent = "There are no entries yet.";
    return;
  }
  const tabs = [...blocks.keys()].map((suite) => make("a", { href: `#${new URLSearchParams({ suite })}` }, suite));
  $("suites").append(...tabs);
  buildHead();
  buildFilters();
  buildPlots();
  $("main").hidden = false;
  $("filter-box").open = matchMedia("(min-width: 48rem)").matches;
  $("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address is the state's
    $("entries").focus();
  });
  $("entry").addEventListener("close", entryClosed);
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
