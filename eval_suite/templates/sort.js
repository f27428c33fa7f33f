"use strict";
// A click on a column's title sorts by it, another one turns it round. What is missing stays at the end.
for (const table of document.querySelectorAll("table")) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => title.firstElementChild.addEventListener("click", () => {
    const falling = title.getAttribute("aria-sort") === "ascending";
    for (const other of titles) other.removeAttribute("aria-sort");
    title.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const keyed = [...table.tBodies[0].rows].map(row => [row.cells[column].dataset.key, row]);
    const numeric = keyed.every(([key]) => key === undefined || key !== "" && !isNaN(key));
    keyed.sort(([a], [b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return (falling ? -1 : 1) * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
    });
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  }));
}
