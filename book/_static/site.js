/* What is wider than its box can be scrolled with the keyboard, too: it is a stop of the Tab key
   while it is too wide. The theme does it for code, but not for code in a toggle that was closed. */
const WIDE = {
  pre: "wide code",
  ".pst-scrollable-table-container": "wide table",
  'mjx-container[display="true"]': "wide equation",
  ".picture": "wide picture",
};
// Of a picture wider than this, in its own pixels, the letters would be too small on a phone. Most
// have panels side by side. site.css lets them scroll there.
const PANELS = 750;

const measured = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const wide = target.scrollWidth > target.clientWidth;
    target.classList.toggle("scrolls", wide);
    if (!wide) {
      for (const name of ["tabindex", "role", "aria-label"]) target.removeAttribute(name);
      continue;
    }
    const [, label] = Object.entries(WIDE).find(([selector]) => target.matches(selector));
    target.tabIndex = 0;
    target.setAttribute("role", "group");
    target.setAttribute("aria-label", label);
  }
});

// A comma or full stop after a formula stays on the formula's line.
function joined(formula) {
  const mark = formula.nextSibling?.nodeType === Node.TEXT_NODE && formula.nextSibling;
  const found = mark && mark.data.match(/^[^\s\p{L}\p{N}]+(s\b)?/u);
  if (!found) return;
  mark.splitText(found[0].length);
  const whole = document.createElement("span");
  whole.style.whiteSpace = "nowrap";
  formula.before(whole);
  whole.append(formula, mark);
}

function framed(image) {
  const frame = document.createElement("div");
  frame.className = "picture";
  image.before(frame);
  frame.append(image);
}

window.addEventListener("load", async () => {
  [...document.querySelectorAll("figure > img")]
    .filter((image) => image.naturalWidth > PANELS)
    .forEach(framed);
  await window.MathJax?.startup?.promise;
  document.querySelectorAll("span.math:has(> mjx-container)").forEach(joined);
  document.querySelectorAll(Object.keys(WIDE).join()).forEach((each) => measured.observe(each));
});
