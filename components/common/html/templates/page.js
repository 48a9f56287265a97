// A click on a column's head sorts the table, a second click reverses the order. Without scripts, rows keep the order of the page.
for (const table of document.querySelectorAll("table:has(thead)")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.tagName !== "TH" || !head.textContent.trim()) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rows = [...body.rows].map((row) => ({ row, key: sortKey(row.cells[column]) }));
      const before = head.getAttribute("aria-sort");
      // The first click sorts names from A to Z, numbers from the largest to the smallest.
      const ascending = before ? before === "descending" : rows.some(({ key }) => typeof key === "string");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      // Averages stay below all other rows, and undefined values come last in both directions.
      const rank = ({ row, key }) => (row.classList.contains("macro") ? 2 : key === null ? 1 : 0);
      rows.sort((a, b) => rank(a) - rank(b) || (rank(a) ? 0 : (ascending ? 1 : -1) * compare(a.key, b.key)));
      body.append(...rows.map(({ row }) => row));
    });
  });
}

function sortKey(cell) {
  const text = (cell.firstChild?.textContent ?? "").trim().replace(/^<\s*/, "").replace("\u2212", "-").replace(/,(?=\d{3})/g, "");
  if (!text || text === "\u2013") return null;
  const number = parseFloat(text);
  return Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}
