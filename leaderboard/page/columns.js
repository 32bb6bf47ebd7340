// The columns of the table: what each shows, how it sorts, and its text in a copied view.

/** The additional data of an entry: none, synthetic (how much) or real, as far as it is known. */
const dataText = (row) => row.data ?? (row.extra_data ? "yes" : "none");

/** What was broken, and certified, by which method: [name, mean number of examples] with the most first. */
const decidedBy = (row, what) => row.decided.filter((stage) => stage.stage !== "clean" && stage[what] > 0)
  .toSorted((a, b) => b[what] - a[what]).map((stage) => [stage.stage, stage[what]]);

/** The first `most` of them with their numbers, and how many others there are. */
function listed(pairs, most = Infinity) {
  const parts = pairs.slice(0, most).map(([name, number]) => `${name} ${examples(number)}`);
  return [...parts, ...(pairs.length > most ? [`+${pairs.length - most}`] : [])].join(", ");
}

/** One line for what broke examples and one for what certified them; without counts if there was no bracket. */
function decidedLines(row, most) {
  const broken = listed(decidedBy(row, "broken"), most) || row.attacked_by.join(", ");
  const certified = listed(decidedBy(row, "certified"), most);
  return [broken && `broken: ${broken}`, certified && `certified: ${certified}`].filter(Boolean);
}

/**
 * Columns. key: to sort by, rows without one are last; down: the first click sorts in descending order; cell: what the
 * table shows. text: of a copied view, where `parts` may give several columns of a CSV. given: the column is left out
 * if no row of the board has it; same: if all rows have the same text, one sentence says so instead.
 */
const COLUMNS = [
  { id: "rank", label: "Rank", key: (row) => row.place, cell: rankCell, text: rankText, number: true },
  { id: "title", label: "Entry", key: (row) => row.title, cell: titleCell, text: (row) => row.title,
    parts: [["entry", (row) => row.title], ["key", (row) => row.name]] },
  accuracyColumn("clean", "Clean"),
  { id: "bracket", label: "Bracket", hint: "Sort by width", key: bracketWidth, ticks: [0, 50, 100],
    given: (row) => row.certified || row.attacked, text: bracketText, parts: [],
    cell: (row) => [make("span", { class: "ends" }, bracketText(row)), bar(row)] },
  accuracyColumn("attacked", "Attacked"),
  { ...accuracyColumn("certified", "Certified"), cell: certifiedCell },
  { id: "open", label: "Open", hint: "Examples neither certified nor broken", key: (row) => row.open, cell: openCell,
    given: (row) => known(row.open), number: true, text: (row) => (known(row.open) ? examples(row.open) : "") },
  { id: "decided", label: "Decided by", hint: "What broke and what certified how many examples",
    key: (row) => decidedLines(row)[0], given: (row) => decidedLines(row).length, cell: decidedCell,
    text: (row) => decidedLines(row).join("; ") },
  { id: "verdict", label: "Verdict", key: (row) => row.verdict, cell: verdict,
    same: (row) => verdictText(row.verdict) },
  { id: "architecture", label: "Architecture", key: (row) => row.architecture, cell: architectureCell,
    same: (row) => row.architecture },
  { id: "extra", label: "Extra data", key: dataText, cell: dataText, same: dataText },
  { id: "passes", label: "Training passes", key: (row) => row.cost?.training_passes, number: true,
    given: (row) => known(row.cost?.training_passes), cell: passesCell,
    text: passesText,
    parts: [["training passes", (row) => row.cost?.training_passes], ["epochs", (row) => row.cost?.training_epochs]] },
  { id: "seconds", label: "Training time", key: (row) => row.cost?.training_seconds, number: true,
    cell: (row) => duration(row.cost?.training_seconds), given: (row) => known(row.cost?.training_seconds),
    text: (row) => (known(row.cost?.training_seconds) ? `${row.cost.training_seconds.toFixed(1)} s` : "") },
  { id: "status", label: "Status", key: (row) => row.status, cell: statusCell, same: (row) => row.status },
];

function accuracyColumn(id, label) {
  const of = (value) => (row) => (known(value(row[id])) ? percent(value(row[id])) : "");
  const low = (estimate) => (estimate && interval(estimate) ? estimate.low : null);
  const high = (estimate) => (estimate && interval(estimate) ? estimate.high : null);
  const name = label.toLowerCase();
  return {
    id, label, key: (row) => row[id]?.acc, down: true, cell: (row) => accuracyCell(row[id]), number: true,
    given: (row) => row[id], text: (row) => accuracyText(row[id]),
    parts: [
      [`${name} %`, of((estimate) => estimate?.acc)], [`${name} low %`, of(low)], [`${name} high %`, of(high)],
      [`${name} sd %`, of((estimate) => estimate?.spread)],
    ],
  };
}

function accuracyText(estimate) {
  if (!estimate) return "";
  const ends = `[${percent(estimate.low)}, ${percent(estimate.high)}]`;
  return interval(estimate) ? `${mean(estimate)} ${ends}` : mean(estimate);
}

/** A reported entry has its key beside the title, because titles of papers repeat. */
function titleCell(row) {
  const kind = row.kind === "reported" ? [row.name, "reported"] : [kindText(row)];
  const links = [[row.url, "paper"], [row.code, "code"]].filter(([url]) => isWeb(url)).map(([href, text]) =>
    make("a", { href, rel: "noopener noreferrer", "aria-label": `${text} of ${row.title}` }, text));
  const parts = [...kind, ...links].flatMap((part, i) => (i ? [" \u00b7 ", part] : [part]));
  return [opener(row), small(...parts)];
}

function passesText({ cost }) {
  if (cost?.computes_bounds) return BOUNDS_NOTE;
  return known(cost?.training_passes) ? count(cost.training_passes) : "";
}

function passesCell({ cost }) {
  const epochs = cost?.training_epochs;
  const text = known(epochs) && (epochs === 1 ? "1 epoch" : `${whole(epochs)} epochs`);
  const bounds = cost?.computes_bounds && make("small", { title: `The training ${BOUNDS_NOTE}` }, "computes bounds");
  return [count(cost?.training_passes), text ? small(text) : [], bounds || []];
}

/** How the certificates were checked stands below the share that counts. */
function certifiedCell({ certified, certificates }) {
  return [accuracyCell(certified), certificates ? small(certificatesText(certificates)) : []];
}

function decidedCell(row) {
  const all = decidedLines(row);
  return decidedLines(row, 2).map((line, i) => make("small", { title: all[i] }, breakable(line)));
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

/** The columns that a board needs, and those in which all of its rows are the same. */
function columnsOf({ rows }) {
  const given = COLUMNS.filter(({ given }) => !given || rows.some(given));
  const isSame = ({ same }) => same && rows.length > 1 && new Set(rows.map(same)).size === 1;
  return { shown: given.filter((column) => !isSame(column)), alike: given.filter(isSame) };
}

/** What all rows have in common, in a sentence; "" if there is nothing. */
function alikeText({ rows }, alike) {
  const parts = alike.map(({ label, same }) => `${label.toLowerCase()} ${same(rows[0])}`);
  return parts.length ? `The same for all entries: ${parts.join("; ")}.` : "";
}
