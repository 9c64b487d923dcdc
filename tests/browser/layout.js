// Writes what is wrong with the layout into an element "faults", one fault a line, after the number of texts looked at.
const faults = [];
let texts = 0;
const name = (text) => JSON.stringify(text.textContent.trim());
for (const svg of document.querySelectorAll("svg")) {
  const frame = svg.getBoundingClientRect();
  if (frame.width === 0) continue;
  const where = svg.closest("figure").id;
  const boxes = [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim()).map((t) => [t, t.getBoundingClientRect()]);
  texts += boxes.length;
  for (const [text, box] of boxes) {
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) {
      faults.push(`${where}: ${name(text)} leaves the drawing`);
    }
  }
  boxes.forEach(([a, p], i) => {
    for (const [b, q] of boxes.slice(i + 1)) {
      const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      // The boxes of lines of text hold room above and below the letters.
      if (x > 0.5 && y > 4) faults.push(`${where}: ${name(a)} overlaps ${name(b)}`);
    }
  });
}
const excess = document.documentElement.scrollWidth - window.innerWidth;
if (excess > 0) faults.push(`the page is ${excess} pixels wider than the window`);
const out = document.createElement("output");
out.id = "faults";
out.textContent = `texts ${texts}\n` + faults.join("\n");
document.body.append(out);
