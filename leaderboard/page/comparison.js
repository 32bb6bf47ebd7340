// The dialog that compares the pinned entries: their brackets, the tests of each pair, their curves.

const details = new Map(); // what the page holds to compare the entries of a suite, and its images

/** Read when the first comparison of a suite is opened. */
function detailsOf(suite) {
  if (!details.has(suite)) {
    const read = (kind) => {
      const blocks = [...document.querySelectorAll(`script[data-${kind}]`)];
      const block = blocks.find(({ dataset }) => dataset[kind] === suite);
      return block ? JSON.parse(block.textContent) : null;
    };
    details.set(suite, { comparisons: read("comparisons"), images: read("images") });
  }
  return details.get(suite);
}

const letter = (i) => make("b", { class: `letter letter-${i}` }, LETTERS[i]);

function sidesSection(rows) {
  const lines = rows.map((row, i) => make("tr", {},
    make("th", { scope: "row" }, letter(i), " ", opener(row), small(row.name, " \u00b7 ", kindText(row))),
    make("td", {}, rankText(row)),
    make("td", { class: "wide" }, make("span", { class: "ends" }, bracketText(row)), bar(row)),
    make("td", {}, accuracyCell(row.clean)), make("td", {}, accuracyCell(row.attacked)),
    make("td", {}, accuracyCell(row.certified)), make("td", {}, openCell(row)),
    make("td", { class: "text" }, decidedCell(row))));
  const heads = ["Entry", "Rank", null, "Clean, %", "Attacked, %", "Certified, %", "Open", "Decided by"];
  return section("Brackets", make("div", { class: "scroll", role: "region", "aria-label": "Brackets", tabindex: "0" },
    make("table", { class: "sides" }, make("caption", { class: "unseen" }, "The compared entries"),
      make("thead", {}, make("tr", {}, heads.map((head) => make("th", { scope: "col" },
        head ?? ["Bracket, %", scale([0, 25, 50, 75, 100])])))),
      make("tbody", {}, lines))));
}

const METRICS = [["robust", "robust"], ["certified", "certified"], ["clean", "clean"]];

/** The pairs of the rows with what is known of each: [i, j, metric, test], where the test is of i less j. */
function tests(rows, comparisons) {
  const places = rows.map((row) => comparisons.outcomes.findIndex(({ name }) => name === row.name));
  const pairs = places.flatMap((_, i) => places.slice(i + 1).map((_, k) => [i, i + 1 + k]));
  const known = new Map(comparisons.pairs.map((pair) => [pair.slice(0, 3).join(), pair]));
  return METRICS.flatMap(([metric, name]) => pairs.flatMap(([i, j]) => {
    const [a, b] = [places[i], places[j]];
    const pair = known.get([Math.min(a, b), Math.max(a, b), metric].join());
    return pair ? [{ i, j, name, ...oriented(pair, a < b ? 1 : -1) }] : [];
  }));
}

/** A pair of leaderboard/board_comparisons.py, of its first entry less its second one (way 1), or the reverse (-1). */
function oriented([, , , n, difference, low, high, p, test, needed, adjusted, better], way) {
  const ends = [low, high].map((end) => (known(end) ? way * end : null)).sort((a, b) => a - b);
  const winner = known(better) ? way * better : null;
  return { n, difference: way * difference, low: ends[0], high: ends[1], p, test, needed, adjusted, winner };
}

const signed = (share) => (known(share) ? `${share < 0 ? "\u2212" : "+"}${Math.abs(100 * share).toFixed(1)}` : NONE);
const probability = (p) => (!known(p) ? NONE : p < 1e-4 ? "< 0.0001" : String(Number(p.toPrecision(2))));

function claim({ i, j, winner, adjusted }) {
  if (winner === null) return muted(NONE);
  const text = winner === 0 ? "not told apart" : `${LETTERS[winner > 0 ? i : j]} is better`;
  return [winner === 0 ? text : make("b", {}, text), small(`adjusted p ${probability(adjusted)}`)];
}

/** The intervals of differences on one axis, 0 in the middle. */
function forest(test, most) {
  const at = (share) => 50 + (50 * share) / most;
  const ends = { x1: `${at(test.low)}%`, x2: `${at(test.high)}%`, y1: "50%", y2: "50%" };
  return draw("svg", { class: "forest", "aria-hidden": "true" },
    draw("line", { class: "zero", x1: "50%", x2: "50%", y1: 0, y2: "100%" }),
    known(test.low) ? draw("line", { class: "whisker thick", ...ends }) : null,
    draw("circle", { class: "estimate", cx: `${at(test.difference)}%`, cy: "50%", r: 4 }));
}

function testsSection(rows, comparisons) {
  const found = comparisons ? tests(rows, comparisons) : [];
  const notes = untestedNotes(rows, comparisons);
  if (!found.length) return section("Differences", ...notes);
  const most = Math.max(0.01, ...found.flatMap(({ difference, low, high }) => [difference, low, high].map(Math.abs)));
  const bounds = make("span", { class: "scale", "aria-hidden": "true" },
    [-most, 0, most].map((end) => make("span", {}, end ? signed(end) : "0")));
  const lines = found.map((test) => [
    [letter(test.i), " \u2212 ", letter(test.j), ` ${test.name}`], signed(test.difference),
    known(test.low) ? `[${signed(test.low)}, ${signed(test.high)}]` : NONE, forest(test, most), probability(test.p),
    claim(test), known(test.needed) ? whole(test.needed) : NONE,
  ]);
  const seeds = found.some(({ test }) => test.includes("seeds"));
  const drawn = [make("span", { class: "unseen" }, "Difference and interval"), bounds];
  const heads = ["Accuracy", "Difference, points", "95 % interval", drawn, "p", "Ranks say",
    seeds ? "Seeds a side to tell" : "Examples to tell"];
  const kinds = [...new Set(found.map(({ test, n }) => `${test}, on ${whole(n)} examples`))].join("; ");
  return section("Differences", grid("Differences", heads, lines),
    make("p", { class: "muted" }, `Test: ${kinds}. p is of this test alone; ranks use p adjusted for all pairs of ` +
      "the board. The last column: for a power of 80 % if the observed difference is the true one."), ...notes);
}

function untestedNotes(rows, comparisons) {
  const named = (i) => rows.findIndex(({ name }) => name === comparisons.outcomes[i]?.name);
  const reasons = (comparisons?.untested ?? []).filter(([a, b]) => named(a) >= 0 && named(b) >= 0);
  const without = rows.filter(({ name }) => !comparisons?.outcomes.some((one) => one.name === name));
  const further = without.filter(({ kind }) => comparisons && kind !== "reported");
  const note = (why, some) => some.length
    ? make("p", {}, `No test, because ${why}: ${some.map(({ title }) => title).join(", ")}.`) : null;
  return [
    ...reasons.map(([, , reason]) => make("p", {}, `No test: ${reason}.`)),
    note("the results on each example are not known", without.filter((row) => !further.includes(row))),
    note(`only the first ${comparisons?.most} entries of a board are compared here (see bench compare)`, further),
  ];
}

function curvesOf(rows, board) {
  const has = (kind) => kind(rows, board).picture;
  const charts = [["Robust against eps", curvePlot], ["Robust against attack passes", workPlot]];
  const drawn = charts.filter(([, plot]) => has(plot)).map(([title, plot]) => {
    const { picture, text } = plot(rows, board);
    return make("figure", {}, make("h4", {}, title), picture, make("figcaption", {}, text));
  });
  return drawn.length ? section("Curves", make("div", { class: "plots" }, drawn)) : null;
}

/** Show the comparison of the state in its dialog, or close it. */
function showComparison(board) {
  const dialog = $("comparison");
  const rows = pinned(board);
  if (state.view !== "compare" || rows.length < 2) {
    dialog.close();
    return;
  }
  const compared = [board.suite, state.pins].join("\n");
  const shown = [compared, state.set].join("\n");
  if (dialog.open && dialog.dataset.shown === shown) return;
  const { comparisons, images } = detailsOf(board.suite);
  const survival = comparisons && survivalSection(board, rows, comparisons, images);
  if (dialog.open && dialog.dataset.compared === compared) {
    $("survival")?.replaceWith(survival);
  } else {
    const close = make("button", { type: "button", class: "quiet" }, "Close");
    close.addEventListener("click", () => dialog.close());
    const title = make("h2", { id: "comparison-title" }, `Comparison of ${rows.length} entries`);
    const head = make("header", {}, make("div", {}, title, make("p", { class: "muted" }, board.suite)), close);
    const parts = [sidesSection(rows), testsSection(rows, comparisons), survival, curvesOf(rows, board)];
    dialog.replaceChildren(head, make("div", { class: "body" }, parts));
  }
  Object.assign(dialog.dataset, { shown, compared });
  if (!dialog.open) dialog.showModal();
}
