// Tables that a heading sorts: numbers by value, names by letters; once more turns the order.
for (const table of document.querySelectorAll("table[data-sort]")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const heading = button.parentElement;
      const up = heading.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? null;
      const order = (first, second) => {
        if (column === 0) return first.cells[0].textContent.localeCompare(second.cells[0].textContent);
        if (key(first) === null || key(second) === null) return (key(first) === null) - (key(second) === null);
        return Number(key(first)) - Number(key(second));
      };
      const rows = [...body.rows].sort(order);
      body.append(...(up ? rows : rows.reverse()));
    });
  });
}
