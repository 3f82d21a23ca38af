// Tables sort by their headings and can be filtered by words; the best candidates follow two limits.
// The page is complete without this script.
const value = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();

function compare(a, b, column, down) {
  const [x, y] = [value(a, column), value(b, column)];
  if (x === "" || y === "") return (x === "") - (y === "");  // missing values come last in both directions
  const [p, q] = [Number(x), Number(y)];
  return down * (Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q);
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      body.append(...[...body.rows].sort((a, b) => compare(a, b, column, down)));
    });
  });
}

function labelled(text, type, after) {
  const label = document.createElement("label"), input = document.createElement("input"), output = document.createElement("output");
  input.type = type;
  if (type === "number") { input.step = "any"; input.min = "0"; }
  label.append(text, input);
  const line = document.createElement("p");
  line.className = "ask";
  line.append(label, output);
  after.before(line);
  return [input, output];
}

for (const table of document.querySelectorAll("table.board")) {
  sortable(table);
  const [input, shown] = labelled("Show rows with ", "search", table.parentElement), rows = [...table.tBodies[0].rows];
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    rows.forEach(row => { row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word)); });
    shown.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length}`;
  });
}

for (const table of document.querySelectorAll("table.frontier")) {
  const rows = [...table.tBodies[0].rows].map(row => ({...row.dataset, mb: Number(row.dataset.mb), bound: Number(row.dataset.bound),
                                                      text: `${row.dataset.name}: ${row.cells[2].textContent} MB, ${row.cells[3].textContent}`}));
  const sign = table.dataset.better === "lower" ? -1 : 1, text = row => row ? row.text : "none";
  const [size, within] = labelled("Best within MB ", "number", table.parentElement);
  size.addEventListener("input", () => { within.textContent = text(rows.filter(row => row.mb <= Number(size.value)).at(-1)); });
  const [least, over] = labelled(`Smallest with ${table.dataset.label} of at ${sign === 1 ? "least" : "most"} `, "number", table.parentElement);
  least.addEventListener("input", () => { over.textContent = text(rows.find(row => sign * row.bound >= sign * Number(least.value))); });
}
