// What is wrong with how a page lies at the present width and theme: a list of sentences.
() => {
  const faults = [];
  const shown = (each) => each.checkVisibility() && each.getClientRects().length > 0;
  const all = (selector) => [...document.querySelectorAll(selector)].filter(shown);
  const scrolls = (each) => ["auto", "scroll"].includes(getComputedStyle(each).overflowX);
  const named = (each) => each.outerHTML.slice(0, 120);

  // The page, and what makes it wider than the window: what is in no box that scrolls or cuts.
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) {
    const wide = all("main *").filter((each) => each.getBoundingClientRect().right > width + 1);
    faults.push(`the page is wider than the window: ${wide.slice(-1).map(named)}`);
  }

  // An equation lies within its box; on a phone its box may scroll, by keyboard as well, with a bar
  // in sight.
  const phone = width < 600;
  for (const equation of all("mjx-container")) {
    let box = equation;
    while (box && getComputedStyle(box).overflowX === "visible") box = box.parentElement;
    const drawn = equation.querySelector("svg").getBoundingClientRect();
    const frame = (box ?? document.documentElement).getBoundingClientRect();
    if (drawn.right <= frame.right + 1 && drawn.left >= frame.left - 1) continue;
    const bar = box.offsetHeight - box.clientHeight;
    if (!phone || !box || !scrolls(box) || box.tabIndex < 0 || bar < 6) {
      faults.push(`an equation is cut: ${named(equation.parentElement)}`);
    }
  }
  if (!phone) {
    for (const code of all(".cell_input pre")) {
      if (code.scrollWidth > code.clientWidth) faults.push(`code is too wide: ${code.textContent}`);
    }
  }
  for (const error of document.querySelectorAll("[data-mjx-error]")) {
    faults.push(`an equation is not TeX: ${error.dataset.mjxError}`);
  }

  // Text that should have become an equation.
  const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const { data, parentElement } = texts.currentNode;
    if (parentElement.closest("pre, code, script, style, mjx-container")) continue;
    if (/\\[([a-zA-Z]|\$\$|\$[^$\s][^$]*\$/.test(data)) faults.push(`raw TeX: ${data.trim()}`);
  }

  // A comma or full stop stays on the line of the formula before it.
  for (const formula of all("span.math:has(> mjx-container)")) {
    const mark = formula.nextSibling;
    if (mark?.nodeType !== Node.TEXT_NODE || !/^[.,;:?!)]/.test(mark.data)) continue;
    const place = document.createRange();
    place.setStart(mark, 0);
    place.setEnd(mark, 1);
    const { left } = place.getBoundingClientRect();
    const end = formula.getBoundingClientRect().right;
    if (left < end - 2) faults.push(`a mark begins a line: ${mark.data}`);
  }

  for (const image of document.images) {
    const path = /[/\\]|\.(png|svg|jpe?g|webp)$/;
    if (!image.alt.trim() || path.test(image.alt.trim())) {
      faults.push(`a picture without a text: ${image.alt || image.src}`);
    }
    if (!image.complete || !image.naturalWidth) faults.push(`a broken picture: ${image.src}`);
    // Letters of ten points are drawn with 15 pixels, and need seven of the page's.
    if (shown(image) && image.width < 0.45 * image.naturalWidth) {
      faults.push(`a picture's letters are too small: ${image.alt}`);
    }
  }

  const controls = "a[href], button, input, select, textarea, summary, [onclick], [role=button]";
  for (const control of all(controls)) {
    if (control.tabIndex < 0) faults.push(`the keyboard does not reach ${named(control)}`);
  }
  return faults;
}
