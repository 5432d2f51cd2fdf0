// All pages of the book as one, made ready for print: a cover, contents with the numbers of pages,
// headings on the levels that they have in the book, links within it. printing.py calls prepare
// and, once the pages are known, number.

const HEADINGS = ".body :is(span[id^='document-'], h1, h2, h3, h4, h5)";

function made(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

// Each page's headings are one level too deep, since it stands within the first one. The first
// heading of a page is that of a chapter.
function level() {
  const found = [];
  let [first, within] = [true, 0];
  for (const each of document.querySelectorAll(HEADINGS)) {
    if (each.tagName === "SPAN") {
      [first, within] = [true, 1];
      continue;
    }
    const tag = `h${Number(each.tagName[1]) - within}`;
    const heading = made(tag, { id: `heading-${found.length}` }, ...each.childNodes);
    heading.querySelectorAll(".headerlink").forEach((link) => link.remove());
    heading.classList.toggle("chapter", first);
    first = false;
    each.replaceWith(heading);
    found.push(heading);
  }
  return found;
}

function entry(heading) {
  const kind = heading.matches(".chapter") ? "contents-chapter" : "contents-section";
  const link = made("a", { href: `#${heading.id}` }, heading.textContent);
  const leader = made("span", { className: "leader" });
  return made("p", { className: kind }, link, leader, made("span", { className: "number" }, "000"));
}

// The cover's words, and the name of the first page, which all others stand within.
function prepare({ title, author, version, first }) {
  const headings = level();
  const listed = headings.filter((each) => each.matches("h1, h2"));
  const cover = made("section", { className: "cover" }, made("p", { className: "title" }, title));
  const note = "Code that the pages fold away is in the notebooks.";
  cover.append(made("p", {}, author), made("p", {}, `Version ${version}`));
  cover.append(made("p", { className: "note" }, note));
  const contents = made("nav", { className: "contents" }, made("h1", {}, "Contents"));
  contents.append(...listed.map(entry));
  const body = document.querySelector(".body");
  document.body.replaceChildren(cover, contents, body);
  body.id = `document-${first}`;

  for (const link of body.querySelectorAll("a[href]")) {
    const [address, anchor] = link.getAttribute("href").split("#");
    if (/^[a-z]+:/.test(address)) continue;
    if (anchor && document.getElementById(anchor)) link.setAttribute("href", `#${anchor}`);
    else link.removeAttribute("href"); // to a file, or a page that is not printed
  }
  body.querySelectorAll("details").forEach((each) => (each.open = true));
  narrow();
}

// What is wider than the page gets smaller, down to half.
function narrow() {
  const width = document.body.clientWidth;
  for (const each of document.querySelectorAll(".body :is(table, pre, mjx-container)")) {
    const drawn = each.querySelector(":scope > svg") ?? each;
    const wide = Math.max(drawn.getBoundingClientRect().width, each.scrollWidth);
    const size = parseFloat(getComputedStyle(each).fontSize);
    if (wide > width) each.style.fontSize = `${size * Math.max(0.5, width / wide)}px`;
  }
}

function number(pages) {
  for (const line of document.querySelectorAll(".contents p")) {
    line.querySelector(".number").textContent = pages[line.firstChild.hash.slice(1)];
  }
}
