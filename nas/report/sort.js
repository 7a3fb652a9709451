// Sorts a table by the column whose heading is pressed; once more turns the order round. Empty cells stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const falls = heading.getAttribute("aria-sort") === "ascending" ||
      (!heading.hasAttribute("aria-sort") && heading.classList.contains("n"));
    headings.forEach(other => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const key = row => {
      const cell = row.cells[column];
      if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
      return cell.textContent.trim() === "-" ? null : cell.textContent.trim();
    };
    const body = table.tBodies[0];
    const compare = (one, other) => typeof one === "number" && typeof other === "number" ? one - other :
      String(one).localeCompare(String(other), "en", {numeric: true});
    [...body.rows].map(row => [key(row), row]).sort(([one], [other]) =>
      one === null || other === null ? (one === null) - (other === null) : (falls ? -1 : 1) * compare(one, other)
    ).forEach(([, row]) => body.append(row));
  }));
}
