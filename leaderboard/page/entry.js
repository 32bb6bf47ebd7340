// The dialog of an entry: its bracket, tables and provenance, and the command that reproduces it.

const section = (title, ...content) => make("section", {}, make("h3", {}, title), ...content);

function facts(pairs) {
  const given = pairs.filter(([, value]) => value);
  return make("dl", {}, given.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

/** A table; the first cell of each row is its header. */
function grid(caption, heads, lines) {
  const body = lines.map(([first, ...others]) =>
    make("tr", {}, make("th", { scope: "row" }, first), others.map((cell) => make("td", {}, cell))));
  return make("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
    make("table", {},
      make("caption", { class: "unseen" }, caption),
      make("thead", {}, make("tr", {}, heads.map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, body)));
}

function bracketSection(row) {
  const bounds = [
    row.certified && `${percent(row.certified.acc)} % of the examples are certified`,
    row.attacked && `${percent(row.attacked.acc)} % are robust to every attack`,
  ].filter(Boolean);
  return section("Bracket",
    make("div", { class: "large" }, bar(row), scale([0, 25, 50, 75, 100])),
    make("p", {}, make("b", {}, bracketText(row)), bounds.length ? `: ${bounds.join(", ")}.` : ""));
}

/** How each example was decided: by which stage, with how much work. Columns that no stage has are left out. */
function decidedSection(row) {
  const columns = [
    ["Tried", (stage) => examples(stage.tried)], ["Certified", (stage) => examples(stage.certified)],
    ["Broken", (stage) => examples(stage.broken)], ["Forwards", (stage) => count(stage.forwards)],
    ["Backwards", (stage) => count(stage.backwards)],
    ["Sub-problems", (stage) => count(stage.nodes), row.decided.some((stage) => known(stage.nodes))],
    ["Time", (stage) => duration(stage.seconds)],
    ["Proofs checked", (stage) => examples(stage.proofs), row.decided.some((stage) => known(stage.proofs))],
  ].filter(([, , shown = true]) => shown);
  const lines = row.decided.map((stage) => [breakable(stage.stage), ...columns.map(([, cell]) => cell(stage))]);
  const limit = row.truncated
    ? ", because a time limit ended the search: another machine may decide more or fewer"
    : known(row.budget) && row.open > 0 ? ` (budget: ${whole(row.budget)} sub-problems for each example)` : "";
  const seeds = row.seeds.length > 1 ? " Means over the seeds." : "";
  return section("How it was decided",
    grid("How it was decided", ["Stage", ...columns.map(([head]) => head)], lines),
    make("p", {}, `${examples(row.open)} examples are open${limit}.${seeds}`));
}

function factsOf(row) {
  const { cost, parameters } = row;
  const accuracy = (estimate) => estimate && [`${mean(estimate)} %`, small(interval(estimate))];
  const newSeed = row.attacked?.new_seed;
  const passes = cost && (cost.computes_bounds ? BOUNDS_NOTE : `${count(cost.training_passes)} passes`);
  const trained = cost && (known(cost.training_passes) || cost.computes_bounds);
  return facts([
    ["Clean", accuracy(row.clean)],
    ["Attacked", accuracy(row.attacked)],
    ["Attacked by", row.attacked_by.join(", ")],
    ["Attacked, one new seed", newSeed && [range(...newSeed), small("95 % prediction interval")]],
    ["Certified", accuracy(row.certified)],
    ["Certificates of a seed", row.certificates && certificatesText(row.certificates)],
    ["Trained", row.trained],
    ["Intervals of", row.clean?.interval_of && kindText(row)],
    ["Open examples", known(row.open) && openCell(row)],
    ["Threat model", row.threat],
    ["Data", row.dataset],
    ["Extra data", dataText(row)],
    ["Architecture", [breakable(row.architecture), known(parameters) ? `, ${whole(parameters)} parameters` : null]],
    ["Training of a seed", trained && `${passes}, ${duration(cost.training_seconds)}`],
    ["Evaluation of a seed", cost && `${count(cost.evaluation_passes)} passes`],
    ["Hardware", cost?.hardware],
    ["Paper", row.paper],
    ["Paper at", row.url && link(row.url)],
    ["Code", row.code && link(row.code)],
    ["Licence", row.licence],
    ["Note", row.note],
  ]);
}

function reproduce(command) {
  const status = make("span", { role: "status", class: "muted" });
  const copy = make("button", { type: "button", class: "quiet copy" }, "Copy");
  copy.addEventListener("click", () => copyText(command, status));
  const code = make("pre", { tabindex: "0" }, make("code", {}, command));
  return section("Command", code, make("p", {}, copy, " ", status));
}

function measuredSection(title, what, measured) {
  const lines = measured.map(({ spec, accuracy, forwards, backwards, seconds }) =>
    [spec, mean(accuracy), interval(accuracy), count(forwards), count(backwards), duration(seconds)]);
  return section(title, grid(title, [what, "Accuracy, %", "95 % interval", "Forwards", "Backwards", "Time"], lines));
}

function curvesSection({ title, curves }) {
  const shown = curves.filter((curve) => curve.norm === curves[0].norm && isDrawable(curve)).slice(0, LINES);
  const chart = shown.map((curve) => ({ curve, text: curve.label }));
  const points = curves.flatMap((curve) =>
    curve.eps.map((eps, i) => [kindOf(curve), known(eps) ? Number(eps.toPrecision(4)) : NONE, percent(curve.acc[i])]));
  return section("Accuracy against eps",
    chart.length ? curveChart(`Accuracy of ${title} against eps`, chart) : null,
    make("details", {}, make("summary", {}, "As a table"),
      grid("Accuracy against eps", ["Measured by", "eps", "Accuracy, %"], points)));
}

/** Accuracy against the passes of each attack. */
function workSection({ title, passes_curves: curves }) {
  const shown = curves.filter(isWork).slice(0, LINES).map((curve) => ({ curve, text: curve.label }));
  return section("Accuracy against attack passes", workChart(`Accuracy of ${title} against attack passes`, shown));
}

function seedsSection(seeds) {
  const heads = ["Seed", "Examples", "Clean", "Attacked", "Certified", "Open", "Weights, SHA-256", "Files", "Recipe"];
  const lines = seeds.map((seed) => {
    const hash = seed.weights.slice(0, 12);
    const weights = make("code", { title: seed.weights }, seed.weights_url ? link(seed.weights_url, hash) : hash);
    return [seed.seed, whole(seed.n_examples), percent(seed.clean), percent(seed.attacked), percent(seed.certified),
      openCell(seed), weights, seed.status, make("code", {}, seed.config_hash)];
  });
  const provenance = seeds.map((seed) => make("details", { class: "provenance" },
    make("summary", {}, `Provenance of seed ${seed.seed}`), facts(Object.entries(seed.provenance))));
  return section("Seeds", grid("Seeds", heads, lines), provenance);
}

function entryParts(row) {
  const place = known(row.position) ? `position ${row.position} as reported, not a rank` : "no rank is claimed";
  const rank = row.rank === null ? place : `rank ${ranks(row)}`;
  const notes = { "by its authors only": ["not trained by anybody else"], elsewhere: ["trained elsewhere"] };
  const alone = notes[row.trained] ?? [];
  const words = [row.status, rank, ...alone, row.kind === "reported" ? [] : kindText(row)].flat();
  const badges = [verdict(row), ...words.map((word) => make("span", {}, word))];
  const reasons = make("ul", {}, row.reasons.map((reason) => make("li", {}, reason)));
  return [
    make("p", { class: "badges" }, badges),
    row.status in STATUS_NOTES && make("p", { class: "muted" }, STATUS_NOTES[row.status]),
    bracketSection(row),
    factsOf(row),
    row.reasons.length && section(`Reasons for the verdict: ${verdictText(row.verdict)}`, reasons),
    row.command && reproduce(row.command),
    row.decided.length && decidedSection(row),
    row.attacks.length && measuredSection("Attacks", "Attack", row.attacks),
    row.certifiers.length && measuredSection("Certifiers", "Certifier", row.certifiers),
    row.curves.length && curvesSection(row),
    row.passes_curves.some(isWork) && workSection(row),
    row.seeds.length && seedsSection(row.seeds),
  ].filter(Boolean);
}

/** Show the entry of the state in the dialog, or close the dialog. */
function showEntry(board) {
  const dialog = $("entry");
  const row = board.rows.find(({ name }) => name === state.entry);
  if (!row) {
    dialog.close();
    return;
  }
  if (dialog.open && dialog.dataset.shown === row.name) return;
  const close = make("button", { type: "button", class: "quiet", id: "close" }, "Close");
  close.addEventListener("click", () => dialog.close());
  const title = make("h2", { id: "entry-title" }, row.title);
  const place = make("p", { class: "muted" }, `${board.suite} / ${row.name}`);
  const head = make("header", {}, make("div", {}, title, place), close);
  dialog.replaceChildren(head, make("div", { class: "body" }, entryParts(row)));
  dialog.dataset.shown = row.name;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

/** After the button, Escape, or a click outside: if the focus was lost, it goes to the entry's row. */
function entryClosed() {
  const { entry } = state;
  if (!entry) return;
  change({ entry: "" });
  if (document.activeElement === document.body) $("body").querySelector(`[data-entry="${CSS.escape(entry)}"]`)?.focus();
}
