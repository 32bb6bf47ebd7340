// Rows that are pinned to be compared: their boxes in the table, and the bar at the bottom of the window.

const MOST_PINS = 4;
const LETTERS = ["A", "B", "C", "D"];

/** The pinned rows of a board, in the order in which they were pinned. */
function pinned(board) {
  const names = new Set(state.pins.split(",").filter(Boolean));
  const rows = [...names].map((name) => board.rows.find((row) => row.name === name));
  return rows.filter(Boolean).slice(0, MOST_PINS);
}

function pinBox(row) {
  const label = `Compare ${row.title}`;
  const box = make("input", { type: "checkbox", "aria-label": label, title: label, "data-pin": row.name });
  return make("label", { class: "pin-box" }, box);
}

const changePins = (rows) => change({ pins: rows.map(({ name }) => name).join(","), set: "" });

function togglePin(name) {
  const board = boards.get(state.suite);
  const rows = pinned(board);
  const others = rows.filter((row) => row.name !== name);
  changePins(others.length < rows.length ? others : [...rows, board.rows.find((row) => row.name === name)]);
}

/** The bar says what is pinned and opens the comparison. Four pinned rows are the most. */
function showPins(board) {
  const rows = pinned(board);
  const names = new Set(rows.map(({ name }) => name));
  for (const box of $("body").querySelectorAll("[data-pin]")) {
    box.checked = names.has(box.dataset.pin);
    box.disabled = !box.checked && rows.length === MOST_PINS;
  }
  $("pins").hidden = rows.length === 0;
  $("pinned").replaceChildren(...rows.map((row, i) => make("li", {},
    make("b", { class: `letter letter-${i}` }, LETTERS[i]), ` ${legible(row.title)} `,
    make("button", { type: "button", class: "unpin", "data-unpin": row.name, "aria-label": `Remove ${row.title}` },
      "\u00d7"))));
  $("compare").disabled = rows.length < 2;
  $("compare").textContent = rows.length < 2 ? "Pin another entry" : `Compare ${rows.length} entries`;
}
