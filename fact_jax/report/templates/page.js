// Sorting: a click (or Enter) on a heading; again, the other way round. Cells without a value stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const value = (row, i) => {
    const cell = row.cells[i], text = cell.dataset.v ?? cell.textContent.trim();
    if (text === "" || text === "–") return null;
    const number = Number(text.replace(/,/g, ""));
    return Number.isNaN(number) ? text.toLowerCase() : number;
  };
  heads.forEach((head, i) => {
    head.querySelector("button")?.addEventListener("click", () => {
      // Numbers: the largest first, as one wants accuracies; names from A.
      const first = head.classList.contains("n") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1, body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [value(row, i), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
        return sign * (a < b ? -1 : a > b ? 1 : 0);
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}

const button = document.getElementById("theme"), root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
const store = (action) => { try { return action(localStorage); } catch { return null; } };
const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
const saved = store((s) => s.getItem("fact-jax-theme"));
if (saved === "dark" || saved === "light") root.dataset.theme = saved;
button.hidden = false;
button.title = "Change between light and dark";
name();
system.addEventListener("change", name);
button.addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  store((s) => s.setItem("fact-jax-theme", root.dataset.theme));
  name();
});

// On paper everything is open.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((d) => { d.open = true; });
});
addEventListener("afterprint", () => closed.forEach((d) => { d.open = false; }));

// A method's confusion and pictures take the place of another's.
for (const choice of document.querySelectorAll(".choice")) {
  const options = choice.querySelectorAll(":scope > .option");
  choice.querySelector(":scope > label select")?.addEventListener("change", (event) => {
    options.forEach((option, i) => { option.hidden = i !== event.target.selectedIndex; });
  });
}
