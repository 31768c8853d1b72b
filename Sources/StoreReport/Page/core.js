// What all parts of the page use: the data, what is chosen, numbers for people, elements, canvases.
// Text from the store goes into the page as text only, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const checkpoints = data.checkpoints;
const pageBytes = 4096;
const byId = id => document.getElementById(id);

// What is chosen. `compare` is null for the parent.
const state = {checkpoint: checkpoints.length - 1, compare: null, region: 0, colour: "changed", allBranches: false};
const views = [];

// MARK: numbers for people

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  let unit = 0;
  let value = count;
  while (Math.abs(value) >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return unit === 0 ? `${value} B` : `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${units[unit]}`;
}
const whole = count => Math.round(count).toLocaleString("en");
const counted = (count, noun) => `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;
const percent = share => {
  const value = share * 100;
  return `${value === 0 || value >= 10 ? Math.round(value) : value >= 0.1 ? value.toFixed(1) : "< 0.1"} %`;
};
const ratio = value => (isFinite(value) && value > 0 ? `${value.toFixed(value < 10 ? 2 : 0)} : 1` : "–");
const stamp = milliseconds => new Date(milliseconds).toISOString();
const moment = milliseconds => `${stamp(milliseconds).slice(0, 10)} ${stamp(milliseconds).slice(11, 19)} UTC`;
const address = page => `0x${(page * pageBytes).toString(16)}`;
const shorten = (text, length) => {
  const letters = [...text];
  return letters.length <= length ? text : letters.slice(0, Math.max(length - 1, 1)).join("") + "…";
};
const sum = list => list.reduce((a, b) => a + b, 0);
// Long lists: no spreading into arguments.
const largest = (list, least = 0) => list.reduce((a, b) => Math.max(a, b), least);

// MARK: elements

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const svgSpace = byId("lineage-svg").namespaceURI;
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(svgSpace, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Fills a table; cells are texts or elements, columns are [title, isNumber].
function fillTable(table, columns, rows) {
  const caption = table.querySelector("caption");
  const cells = (tag, row) => row.map((cell, index) => make(tag, columns[index][1] ? {class: "number"} : {}, cell));
  const head = make("thead", {}, make("tr", {}, ...cells("th", columns.map(column => column[0]))));
  head.querySelectorAll("th").forEach(cell => cell.setAttribute("scope", "col"));
  const body = make("tbody", {}, ...rows.map(row => make("tr", {}, ...cells("td", row))));
  table.replaceChildren(...(caption ? [caption] : []), head, body);
  return [...body.children];
}

// A table that is made when somebody opens it.
function tableOnDemand(id, makeRows) {
  const details = byId(id);
  const fill = () => {
    if (!details.open) return;
    const {columns, rows} = makeRows();
    const table = make("table");
    fillTable(table, columns, rows);
    details.querySelector("div")?.remove();
    details.append(make("div", {}, table));
  };
  details.addEventListener("toggle", fill);
  return fill;
}

function swatch(colour, ...texts) {
  const box = make("i");
  box.style.background = colour;
  const [name, note] = texts;
  return make("li", {}, box, make("span", {}, name), ...(note ? [make("small", {}, note)] : []));
}
function rampKey(colours, low, high) {
  const box = make("i", {class: "ramp"});
  box.style.background = `linear-gradient(90deg, ${colours.join(", ")})`;
  return make("li", {}, make("small", {}, low), box, make("small", {}, high));
}

const tip = byId("tip");
function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18}px`;
}
const hideTip = () => { tip.hidden = true; };

// MARK: colours

const variable = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rampLengths = {heat: 5, age: 6, ratio: 5, full: 5};
const rampColours = name => Array.from({length: rampLengths[name]}, (_, index) => variable(`--${name}-${index}`));

// A function from 0...1 to a colour; 64 steps are more than an eye tells apart.
function ramp(name) {
  const stops = rampColours(name).map(hex => [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16)));
  const steps = Array.from({length: 64}, (_, step) => {
    const place = step / 63 * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    const mix = stops[low].map((from, part) => Math.round(from + (stops[low + 1][part] - from) * (place - low)));
    return `rgb(${mix.join(",")})`;
  });
  return share => steps[Math.max(0, Math.min(63, Math.round(share * 63)))];
}

// MARK: canvases

// Draws on a canvas as wide as its box, sharp on every screen: `paint(context, width)` is called with the height that
// `measure(width)` gives.
function paintCanvas(box, measure, paint) {
  const width = Math.max(200, Math.floor(box.clientWidth));
  const height = Math.max(1, Math.ceil(measure(width)));
  const scale = window.devicePixelRatio || 1;
  const canvas = box.querySelector("canvas") ?? box.appendChild(make("canvas"));
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  paint(context, width, height);
}

// Says what is under the pointer, and under a cursor that the arrow keys move. `find(x, y)` gives a place or null, `move(place, dx, dy)`
// the next one, `say(place)` its text.
function explore(box, line, {find, move, say, choose}) {
  let place = null;
  const local = event => {
    const area = box.getBoundingClientRect();
    return find(event.clientX - area.left, event.clientY - area.top);
  };
  box.addEventListener("pointermove", event => {
    const found = local(event);
    if (found === null) return hideTip();
    place = found;
    showTip(say(found), event.clientX, event.clientY);
  });
  box.addEventListener("pointerleave", hideTip);
  box.addEventListener("click", event => {
    const found = local(event);
    if (found === null) return;
    if (line) line.textContent = say(found).replaceAll("\n", " · ");
    if (choose) choose(found);
  });
  box.addEventListener("keydown", event => {
    const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    if (event.key === "Enter" && place !== null && choose) return choose(place);
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    place = move(place, ...step);
    if (line && place !== null) line.textContent = say(place).replaceAll("\n", " · ");
  });
}

// MARK: what is chosen

function update(changes) {
  Object.assign(state, changes);
  if (state.compare === state.checkpoint) state.compare = null;
  for (const view of views) view(changes);
  const place = new URLSearchParams();
  if (checkpoints.length) place.set("checkpoint", checkpoints[state.checkpoint].name);
  if (state.compare !== null) place.set("compare", checkpoints[state.compare].name);
  if (data.regions.length) place.set("region", data.regions[state.region].name);
  place.set("colour", state.colour);
  try { history.replaceState(null, "", `#${place}`); } catch { /* some viewers allow no history: the view is right all the same */ }
}

// What the address asks for: #checkpoint=NAME&compare=NAME&region=NAME&colour=age.
function fromAddress() {
  const place = new URLSearchParams(location.hash.slice(1));
  const found = (list, key) => list.findIndex(item => item.name === place.get(key));
  const [checkpoint, compare, region] = [found(checkpoints, "checkpoint"), found(checkpoints, "compare"), found(data.regions, "region")];
  if (checkpoint >= 0) state.checkpoint = checkpoint;
  state.compare = compare >= 0 ? compare : null;
  if (region >= 0) state.region = region;
  if (place.get("colour") in colours) state.colour = place.get("colour");
}
