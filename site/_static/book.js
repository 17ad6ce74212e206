// Self-tests: shows what a question says to the answer given. All answers are in the page already, hidden.
for (const form of document.querySelectorAll("form.quiz")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [says, status] = [[...form.querySelectorAll("p[hidden]")], form.querySelector("[role=status]")];
    const inputs = [...form.querySelectorAll("input")];
    let said;
    if (inputs.length > 1) {
      said = says[inputs.findIndex((input) => input.checked)];
    } else {
      const typed = inputs[0].value.replace(/[\u2212\u2013]/g, "-").replace(",", ".").trim();
      const [whole, part = 1] = typed === "" ? [NaN] : typed.split("/").map(Number);
      const value = whole / part;
      const fits = ({ dataset: { low, high } }) => low === "" || (Number(low) <= value && value <= Number(high));
      said = Number.isNaN(value) ? undefined : says.find(fits);
    }
    status.className = said ? said.className : "";
    status.textContent = said ? said.textContent : inputs.length > 1 ? "Choose one first." : "Type a number first.";
  });
}

// What is wider than its place is scrolled by keyboard too.
const reach = () => {
  for (const part of document.querySelectorAll("pre, .table-wrapper, div.math")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  }
};
reach();
addEventListener("resize", reach);
for (const folded of document.querySelectorAll("details")) folded.addEventListener("toggle", reach);
