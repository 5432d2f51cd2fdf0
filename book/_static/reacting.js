// Figures that react. A script of the class "reacting" holds what coalora_lib/book/reacting.py made
// of one: plotly's drawings, controls, and what each combination of their positions shows. It takes
// the place of the picture in the figure that it names. site.py loads this where a page has one.

// Pixels that a plot is high, unless its layout says otherwise.
const HEIGHT = 320;
const CONFIG = { displayModeBar: false, doubleClick: false, responsive: true, showTips: false };

function made(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

// A drawing's layout with colours from the page's theme. Axes are fixed and nothing is dragged, so
// that a finger on a plot scrolls the page.
function themed(layout, legend) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--pst-color-${name}`).trim();
  const [text, lines, back] = [colour("text-base"), colour("border"), colour("background")];
  const axis = { automargin: true, fixedrange: true, gridcolor: lines, zerolinecolor: lines };
  const found = {
    dragmode: false,
    height: HEIGHT,
    hovermode: "closest",
    legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" },
    margin: { l: 50, r: 12, t: 34, b: legend ? 104 : 44 },
    ...structuredClone(layout),
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: text, family: style.fontFamily, size: 12 },
    hoverlabel: { bgcolor: back, bordercolor: text, font: { color: text } },
  };
  found.title = { x: 0, xref: "paper", font: { size: 13 }, ...found.title };
  for (const name of new Set(["xaxis", "yaxis", ...Object.keys(found)])) {
    if (/^[xy]axis\d*$/.test(name)) found[name] = { ...axis, ...found[name] };
  }
  return found;
}

// A control's elements, and a function that gives its position.
function control({ label, values, start, slider }, id) {
  const name = made("label", { htmlFor: id }, label);
  if (!slider) {
    const menu = made("select", { id, className: "form-select" });
    menu.append(...values.map((value) => made("option", {}, value)));
    menu.selectedIndex = start;
    return [made("div", {}, name, menu), () => menu.selectedIndex];
  }
  const range = made("input", { id, type: "range", min: 0, max: values.length - 1, value: start });
  const value = made("span", { ariaHidden: "true" });
  const position = () => {
    value.textContent = values[range.value];
    range.setAttribute("aria-valuetext", value.textContent);
    return Number(range.value);
  };
  return [made("div", {}, name, value, range), position];
}

function table(head) {
  const cells = head.map((text) => made("th", { scope: "col" }, text));
  const body = made("tbody");
  const top = made("thead", {}, made("tr", {}, ...cells));
  const whole = made("table", { className: "table" }, top, body);
  const fill = (rows) =>
    body.replaceChildren(
      ...rows.map(([first, ...others]) => {
        const row = made("tr", {}, made("th", { scope: "row" }, first));
        row.append(...others.map((text) => made("td", {}, text)));
        return row;
      }),
    );
  return [made("div", { className: "pst-scrollable-table-container" }, whole), fill];
}

function react(figure, { plots, controls, head, states }) {
  const picture = figure.querySelector("img");
  const built = controls.map((each, number) => control(each, `${figure.id}-control-${number}`));
  const says = made("p", { className: "reacting-says", role: "status" });
  // Their height is their style's too: plotly measures it anew when the window changes its size.
  const drawings = plots.map(({ layout }) => {
    const drawing = made("div");
    drawing.style.height = `${layout.height ?? HEIGHT}px`;
    return drawing;
  });
  const area = made("div", { className: "reacting-plots", role: "img", ariaLabel: picture.alt });
  area.append(...drawings);
  const [rows, fill] = table(head);
  const parts = [made("div", { className: "reacting-controls" }, ...built.map(([part]) => part))];
  parts.push(says, area);
  if (head.length) parts.push(rows);
  (picture.closest("a") ?? picture).hidden = true;
  figure.prepend(...parts);

  const show = () => {
    const number = built.reduce((sum, [, at], i) => sum * controls[i].values.length + at(), 0);
    const state = states[number];
    const data = plots.map((plot) => plot.data.map((trace) => ({ ...trace })));
    for (const [plot, trace, changed] of state.traces) Object.assign(data[plot][trace], changed);
    drawings.forEach((drawing, i) => {
      const layout = themed(plots[i].layout, data[i].length > 1);
      Plotly.react(drawing, data[i], layout, CONFIG);
    });
    says.textContent = state.says;
    fill(state.rows);
  };
  parts[0].addEventListener("input", show);
  const theme = { attributeFilter: ["data-theme"] };
  new MutationObserver(show).observe(document.documentElement, theme);
  show();
}

for (const script of document.querySelectorAll("script.reacting")) {
  react(document.getElementById(script.dataset.figure), JSON.parse(script.textContent));
}
