// "Copy this view": the rows and columns that the table shows, in its order, as CSV or LaTeX.

/** Text that no spreadsheet evaluates as a formula; as leaderboard/texts.py does it. */
const noFormula = (text) => text.replace(/(^|[;|,\t\r\n])(\s*['"]?\s*)(?=[=+\-@])/g, "$1'$2");

const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

const textOf = (column) => column.text ?? column.same;

function viewAsCsv(rows, columns) {
  const cells = columns.flatMap((column) => column.parts ?? [[column.label.toLowerCase(), textOf(column)]]);
  const lines = rows.map((row) => cells.map(([, text]) => quoted(noFormula(legible(text(row) ?? "")))).join(","));
  return `${[cells.map(([name]) => name).join(","), ...lines].join("\n")}\n`;
}

const LATEX = {
  "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\u00b1": "$\\pm$", "\u2013": "--",
  "\u2014": "---", "\u2264": "$\\leq$", "\u2265": "$\\geq$", "\u2026": "\\dots{}",
};
const asLatex = (text) => legible(text).replace(/\s+/g, " ")
  .replace(/[\\~^\u00b1\u2013\u2014\u2264\u2265\u2026]|[&%$#_{}]/g, (c) => LATEX[c] ?? `\\${c}`);

/** A table for the package booktabs. */
function viewAsLatex(rows, columns) {
  const line = (cells) => `${cells.join(" & ")} \\\\`;
  return [
    `\\begin{tabular}{${columns.map(({ number }) => (number ? "r" : "l")).join("")}}`,
    "\\toprule", line(columns.map(({ label }) => asLatex(label))), "\\midrule",
    ...rows.map((row) => line(columns.map((column) => asLatex(textOf(column)(row))))),
    "\\bottomrule", "\\end{tabular}", "",
  ].join("\n");
}

/** Put a text on the clipboard and say so; without a permission, show it selected. */
async function copyText(text, status) {
  try {
    await navigator.clipboard.writeText(text);
    status.textContent = "Copied.";
  } catch {
    const area = make("textarea", { readonly: "", rows: 6, "aria-label": "Text to copy" });
    area.value = text;
    status.replaceChildren("Copy it with the keyboard: ", area);
    area.select();
  }
}

function copyView(form) {
  const board = boards.get(state.suite);
  const { shown } = columnsOf(board);
  const view = form === "csv" ? viewAsCsv : viewAsLatex;
  copyText(view(sorted(matching(board)), shown), $("copied"));
}
