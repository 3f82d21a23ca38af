// Tables sort by a press on a heading and show the rows that hold every word of a filter; bests follow two limits.
// Everything can be read without this.
const value = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();

function compare(a, b, column, down) {
  const [x, y] = [value(a, column), value(b, column)];
  if (x === "" || y === "") return (x === "") - (y === "");  // what was not measured stands last either way
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
  const label = document.createElement("label"), input = document.createElement("input"), told = document.createElement("output");
  input.type = type;
  if (type === "number") { input.step = "any"; input.min = "0"; }
  label.append(text, input);
  const line = document.createElement("p");
  line.className = "ask";
  line.append(label, told);
  after.before(line);
  return [input, told];
}

for (const table of document.querySelectorAll("table.board")) {
  sortable(table);
  const [input, told] = labelled("Show rows with ", "search", table.parentElement), rows = [...table.tBodies[0].rows];
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    rows.forEach(row => { row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word)); });
    told.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length}`;
  });
}

for (const table of document.querySelectorAll("table.frontier")) {
  const rows = [...table.tBodies[0].rows].map(row => ({...row.dataset, mb: Number(row.dataset.mb), bound: Number(row.dataset.bound),
                                                      told: `${row.dataset.name}: ${row.cells[2].textContent} MB, ${row.cells[3].textContent}`}));
  const sign = table.dataset.better === "lower" ? -1 : 1, told = row => row ? row.told : "none";
  const [size, within] = labelled("Best within MB ", "number", table.parentElement);
  size.addEventListener("input", () => { within.textContent = told(rows.filter(row => row.mb <= Number(size.value)).at(-1)); });
  const [least, over] = labelled(`Smallest with ${table.dataset.label} of at ${sign === 1 ? "least" : "most"} `, "number", table.parentElement);
  least.addEventListener("input", () => { over.textContent = told(rows.find(row => sign * row.bound >= sign * Number(least.value))); });
}
