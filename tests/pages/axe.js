// axe-core's serious and critical violations, as sentences: of what depends on the theme (colours),
// on the width (sizes), and on neither (rest, which has the sizes too). What would cost minutes and says
// nothing new is left out: a chapter has thousands of coloured words, and of parts of equations.
async (parts) => {
  // Each kind of highlighted word stays once a kind of block; the others become its plain text.
  const kinds = new Set();
  for (const word of document.querySelectorAll("pre span")) {
    const kind = word.className + word.closest("div").className;
    if (word.childElementCount || !kinds.has(kind)) kinds.add(kind);
    else word.replaceWith(word.textContent);
  }
  const equations = "mjx-container > svg, mjx-assistive-mml";
  document.querySelectorAll(equations).forEach((each) => each.replaceChildren());

  // Contrast depends on these alone: one text each.
  const background = (each) => {
    const { backgroundColor } = getComputedStyle(each);
    const through = backgroundColor === "rgba(0, 0, 0, 0)" && each.parentElement;
    return through ? background(each.parentElement) : backgroundColor;
  };
  const texts = new Map();
  for (const each of document.querySelectorAll("body :not(script, mjx-container *)")) {
    const says = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!says || !each.checkVisibility()) continue;
    const { color, fontSize, fontWeight, opacity } = getComputedStyle(each);
    texts.set([color, fontSize, fontWeight, opacity, background(each)].join(), each);
  }

  const options = { resultTypes: ["violations"], preload: false };
  const others = { "color-contrast": { enabled: false }, region: { enabled: false } }; // moderate
  const colours = { include: [...texts.values()] };
  const runs = {
    colours: () => axe.run(colours, { ...options, runOnly: ["color-contrast"] }),
    rest: () => axe.run({ ...options, rules: others }),
    sizes: () => axe.run({ ...options, runOnly: ["scrollable-region-focusable", "target-size"] }),
  };
  const faults = [];
  for (const part of parts) {
    for (const { id, impact, nodes } of (await runs[part]()).violations) {
      if (!["serious", "critical"].includes(impact)) continue;
      for (const { html, failureSummary } of nodes) {
        faults.push(`${id}: ${html.slice(0, 120)} ${failureSummary}`);
      }
    }
  }
  return faults;
}
