// The plots of a board: clean against robust, cost against robust, robust against eps.

const LINES = 8; // curves with different styles

function robustText(row) {
  return row.certified ? `robust ${bracketText(row)} %` : `robust at most ${percent(row.attacked.acc)} %`;
}

const extent = (values) => range(Math.min(...values), Math.max(...values));

function cleanPlot(rows) {
  const points = rows.filter((row) => row.clean && row.attacked).map((row) => ({
    row, x: row.clean.acc, y: row.attacked.acc,
    text: `${row.title}: clean ${percent(row.clean.acc)} %, ${robustText(row)}`,
  }));
  if (!points.length) return { text: "None of these entries has a clean and an attacked accuracy." };
  const stems = points.length <= 60 ? points.filter(({ row }) => row.certified) : [];
  const [xs, ys] = [points.map(({ x }) => x), points.map(({ y }) => y)];
  const low = stems.map(({ row }) => row.certified.acc);
  const plot = frame("Clean against robust accuracy",
    [shares(xs), "clean accuracy, %"], [shares([...ys, ...low]), "robust accuracy, %"]);
  for (const { row, x, y } of stems) {
    const [at, end] = [plot.across(x), plot.up(row.certified.acc)];
    plot.svg.append(draw("path", { class: "stem", d: `M${at} ${plot.up(y)}V${end}M${at - 4} ${end}h8` }));
  }
  scatter(plot, points);
  const most = points.reduce((a, b) => (b.y > a.y ? b : a)).row.title;
  return { picture: [plot.svg], text: `${entries(points.length)}: clean accuracy ${extent(xs)} %, under attack ` +
    `${extent(ys)} %; ${most} has the highest.${stems.length ? " A line goes down to the certified accuracy." : ""}` };
}

const COSTS = {
  passes: { label: "training passes", of: (row) => row.cost?.training_passes, text: count },
  seconds: { label: "training time", of: (row) => row.cost?.training_seconds, text: duration },
};

/** The points for which no other is both cheaper and more robust. Unreliable results are left out. */
function pareto(points) {
  let best = -Infinity;
  const front = [];
  for (const point of points.toSorted((a, b) => a.x - b.x || b.y - a.y)) {
    if (point.row.verdict === "unreliable" || point.y <= best) continue;
    best = point.y;
    front.push(point);
  }
  return front;
}

function costPlot(rows) {
  const { label, of, text } = COSTS[Object.hasOwn(COSTS, state.cost) ? state.cost : "passes"];
  const points = rows.filter((row) => of(row) > 0 && row.attacked).map((row) => ({
    row, x: of(row), y: row.attacked.acc, text: `${row.title}: ${label} ${text(of(row))}, ${robustText(row)}`,
  }));
  if (!points.length) return { text: `None of these entries has both ${label} and an attacked accuracy.` };
  const [xs, ys] = [points.map(({ x }) => x), points.map(({ y }) => y)];
  const plot = frame("Cost against robust accuracy",
    [logarithmic(xs, text), label], [shares(ys), "accuracy under attack, %"]);
  const front = pareto(points);
  const steps = front.map(({ x, y }, i) => `${i ? "H" : "M"}${plot.across(x)}${i ? "V" : " "}${plot.up(y)}`);
  if (front.length) plot.svg.append(draw("path", { class: "front", d: `${steps.join("")}H${WIDE - RIGHT}` }));
  scatter(plot, points);
  const named = front.slice(0, NAMED).map(({ row }) => row.title).join(", ");
  return { picture: [plot.svg], text: `${entries(points.length)}: ${label} from ${text(Math.min(...xs))} to ` +
    `${text(Math.max(...xs))}. On the Pareto front, from cheap to robust: ${named || "none"}.` };
}

const kindOf = (curve) => `${curve.norm}, ${curve.label}`;
const isDrawable = ({ eps, acc }) => eps.length > 1 && eps.every((e) => known(e) && e >= 0) && acc.every(isShare);

/** The attacks of the curves of a board, the most frequent first. */
function curveKinds(board) {
  const tally = new Map();
  for (const { curves } of board.rows) {
    for (const kind of new Set(curves.filter(isDrawable).map(kindOf))) tally.set(kind, (tally.get(kind) ?? 0) + 1);
  }
  return [...tally.keys()].sort((a, b) => tally.get(b) - tally.get(a));
}

/** Curves {curve, text, row} against eps, and their legend; a curve with a row opens its entry. */
function curveChart(name, curves) {
  const furthest = Math.max(...curves.flatMap(({ curve }) => curve.eps), 1e-9);
  const axis = [linear(0, furthest, (tick) => Number(tick.toPrecision(3))), `eps (${curves[0].curve.norm})`];
  return lineChart(name, axis, curves, (curve) => curve.eps);
}

/** Curves against the passes of an attack; see curveChart. */
function workChart(name, curves) {
  const axis = [logarithmic(curves.flatMap(({ curve }) => curve.passes), count), "passes of each example"];
  return lineChart(name, axis, curves, (curve) => curve.passes);
}

function lineChart(name, axis, curves, of) {
  const plot = frame(name, axis, [linear(0, 1, (tick) => Math.round(100 * tick)), "accuracy under attack, %"]);
  curves.forEach(({ curve, text, row }, i) => {
    const corners = of(curve).map((x, j) => `${plot.across(x).toFixed(1)} ${plot.up(curve.acc[j]).toFixed(1)}`);
    const d = `M${corners.join("L")}`;
    const line = draw("path", { class: `line line-${i}`, d });
    plot.svg.append(row ? mark(row, text, null, draw("path", { class: "target", d }), line) : line);
  });
  addKeys(plot.svg);
  return [plot.svg, make("ul", { class: "legend" }, curves.map(legendItem))];
}

function legendItem({ text, row }, i) {
  const sample = draw("path", { class: `line line-${i}`, d: "M0 4H28" });
  return make("li", {}, draw("svg", { viewBox: "0 0 28 8", "aria-hidden": "true" }, sample), row ? opener(row) : text);
}

/** The curves of one kind, one of each row, with what their caption says of how many there are. */
function firstCurves(rows, curveOf) {
  const all = rows.flatMap((row) => {
    const curve = curveOf(row);
    const text = curve && `${row.title}: ${percent(curve.acc[0])} to ${percent(curve.acc.at(-1))} %`;
    return curve ? [{ row, curve, text }] : [];
  });
  const some = all.slice(0, LINES);
  const left = all.length > some.length;
  return { some, rest: left ? ` The first ${some.length} of ${whole(all.length)}; filter to see others.` : "" };
}

function curvePlot(rows, board) {
  const kinds = curveKinds(board);
  const kind = kinds.includes(state.curve) ? state.curve : kinds[0];
  const { some, rest } = firstCurves(rows, (row) => row.curves.find((one) => kindOf(one) === kind && isDrawable(one)));
  if (!some.length) return { text: "None of these entries has a curve." };
  const here = some.flatMap(({ row, curve }) => {
    const i = curve.eps.findIndex((eps) => Math.abs(eps - row.eps) < 1e-9);
    return i < 0 ? [] : [`${row.title} ${percent(curve.acc[i])}`];
  });
  const values = here.length ? ` At eps ${Number(some[0].row.eps.toPrecision(4))}, in %: ${here.join(", ")}.` : "";
  return { picture: curveChart("Robust accuracy against eps", some), text: `Measured by ${kind}.${rest}${values}` };
}

const isWork = ({ passes, acc }) => passes.length > 1 && passes.every((n) => n > 0) && acc.every(isShare);

/** The attacks of a board whose passes are recorded, the most frequent first. */
function worked(board) {
  const labels = board.rows.flatMap(({ passes_curves: curves }) => curves.filter(isWork).map(({ label }) => label));
  const tally = Map.groupBy(labels, (label) => label);
  return [...tally.keys()].sort((a, b) => tally.get(b).length - tally.get(a).length);
}

function workPlot(rows, board) {
  const attacks = worked(board);
  const attack = attacks.includes(state.attack) ? state.attack : attacks[0];
  const of = (row) => row.passes_curves.find((curve) => curve.label === attack && isWork(curve));
  const { some, rest } = firstCurves(rows, of);
  if (!some.length) return { text: "None of these entries has a curve." };
  const ends = some.map(({ row, curve }) => `${row.title} ${percent(curve.acc.at(-1))}`).join(", ");
  return { picture: workChart("Robust accuracy against attack passes", some),
    text: `Robust to ${attack} after so many passes.${rest} In the end, in %: ${ends}.` };
}

const PLOTS = [
  { title: "Clean against robust", plot: cleanPlot },
  { title: "Cost against robust", plot: costPlot, key: "cost", label: "Cost",
    choices: () => Object.entries(COSTS).map(([id, { label }]) => [id, label]) },
  { title: "Robust against eps", plot: curvePlot, key: "curve", label: "Measured by",
    choices: (board) => curveKinds(board).map((kind) => [kind, kind]) },
  { title: "Robust against attack passes", plot: workPlot, key: "attack", label: "Attack",
    choices: (board) => worked(board).map((label) => [label, label]) },
];

/** Whether a board has anything for a plot. */
const HAS = {
  clean: ({ rows }) => rows.some((row) => row.clean && row.attacked),
  cost: ({ rows }) => rows.some((row) => row.attacked && row.cost?.training_passes > 0),
  curve: (board) => curveKinds(board).length > 0,
  attack: (board) => worked(board).length > 0,
};

function buildPlots() {
  for (const each of PLOTS) {
    const choice = each.key && make("select", { id: each.key, "aria-label": each.label });
    choice?.addEventListener("input", () => change({ [each.key]: choice.value }));
    each.picture = make("div");
    each.readout = make("p", { class: "readout", "aria-hidden": "true" });
    each.text = make("figcaption");
    for (const kind of ["pointerover", "focusin"]) {
      each.picture.addEventListener(kind, ({ target }) => {
        each.readout.textContent = target.closest(".mark")?.getAttribute("aria-label") ?? "";
      });
    }
    const head = make("div", { class: "plot-head" }, make("h3", {}, each.title), choice);
    each.figure = make("figure", {}, head, each.picture, each.readout, each.text);
    $("plots").append(each.figure);
  }
}

function showPlots(board, rows) {
  for (const each of PLOTS) {
    each.figure.hidden = !HAS[each.key ?? "clean"](board);
    const { picture = [], text } = each.plot(rows, board);
    each.picture.replaceChildren(...picture);
    each.readout.textContent = "";
    each.text.textContent = legible(text);
    if (each.key) showChoice($(each.key), each.choices(board), state[each.key]);
  }
}

function showChoice(select, choices, wanted) {
  if ([...select.options].map((option) => option.value).join("\n") !== choices.map(([value]) => value).join("\n")) {
    select.replaceChildren(...choices.map(([value, name]) => make("option", { value }, name)));
  }
  select.hidden = choices.length < 2;
  select.value = choices.some(([value]) => value === wanted) ? wanted : choices[0]?.[0];
}
