// A click on a column's head sorts the table by it, another one the other way round: numbers by their value, of what comes
// first in a cell, the best first; empty cells stay below.
for (const table of document.querySelectorAll("table.sortable")) {
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim().replace("\u2212", "-");
    return /^[-+]?\.?\d[\d.]*(?=$|[ %])/.test(text) ? parseFloat(text) : text;
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), undefined, {numeric: true});
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const body = table.tBodies[0], rows = [...body.rows];
      const numbers = rows.some(row => typeof value(row, column) === "number");
      const orders = ["ascending", "descending"];
      if (numbers && !button.textContent.includes("\u2193")) orders.reverse();  // the best first
      const order = orders[head.getAttribute("aria-sort") === orders[0] ? 1 : 0];
      for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        const x = value(a, column), y = value(b, column);
        return (x === "") - (y === "") || sign * compare(x, y);
      });
      body.append(...rows);
    };
  });
}
