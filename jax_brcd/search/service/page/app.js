// The page: what is asked for, how, and what was found. Every search leaves a code, by which its settings can be changed and
// which the browser's Back button returns to.

import { bytesOf, hexOf, strip } from "/page/bits.js";
import { ask, headers, openOriginal, show } from "/page/service.js";

const FIRST = 60;  // hits of a search; the radius hides and shows among them
const part = Object.fromEntries([...document.querySelectorAll("[id]")].map((each) => [each.id, each]));

let status = null, worker = null;
let query = null;    // { picture: address or Blob, file: Blob or null, code: hex or null, k }
let found = null;    // the service's last answer
let latest = 0;      // number of the last search; what earlier ones bring is no longer wanted
const waiting = new Map();
const visited = [];  // queries, by the number that the browser's history has of them

// ---- what is asked

function encodeHere(file) {
  worker ??= start();
  return new Promise((resolve, reject) => {
    waiting.set(++encodeHere.count, { resolve, reject });
    worker.postMessage({ number: encodeHere.count, file, headers: headers(), most: status.limits.pixels });
  });
}
encodeHere.count = 0;

function start() {
  const made = new Worker("/page/worker.js", { type: "module" });
  made.onmessage = ({ data }) => {
    const { resolve, reject } = waiting.get(data.number);
    waiting.delete(data.number);
    data.problem ? reject(new Error(data.problem)) : resolve(data);
  };
  made.onerror = (event) => {
    worker = null;
    for (const { reject } of waiting.values()) reject(new Error(`the encoder does not start here (${event.message ?? "no reason told"})`));
    waiting.clear();
  };
  return made;
}

const inBrowser = () => part.here.checked && !part["here-label"].hidden;
const byImage = (query) => query.file !== null && !inBrowser();

async function answer(query) {  // of one's own: the page may ask for another before this one is encoded
  if (byImage(query)) {
    const asked = new URLSearchParams({ k: query.k, soft: part.soft.checked ? 1 : 0 });
    const mode = document.querySelector("[name=mode]:checked");
    if (mode) asked.set("mode", mode.value);
    return (await ask(`/v1/search?${asked}`, { method: "POST", body: query.file })).json();
  }
  let spent = {};
  if (query.file !== null && query.code === null) {
    const encoded = await encodeHere(query.file);
    [query.code, spent] = [hexOf(encoded.code), encoded.milliseconds];
  }
  const asked = new URLSearchParams({ k: query.k, ...(status.space ? { space: status.space } : {}) });
  const told = await (await ask(`/v1/search/codes?${asked}`, { method: "POST", body: bytesOf(query.code) })).json();
  return { ...told, milliseconds: { ...spent, ...told.milliseconds } };
}

async function search() {
  const number = ++latest, began = performance.now();
  part.problem.hidden = true;
  part.hits.classList.add("waiting");
  part.told.textContent = "Searching…";
  try {
    const told = await answer(query);
    if (number !== latest) return;
    found = told;
    draw(performance.now() - began);
  } catch (error) {
    if (number === latest) complain(error.message);
  } finally {
    if (number === latest) part.hits.classList.remove("waiting");
  }
}

function complain(problem) {
  part.told.textContent = "";
  part.problem.textContent = problem;
  part.problem.hidden = false;
}

function searchFor(next) {
  visited.push(query = { file: null, code: null, k: Math.min(FIRST, status.limits.hits), ...next });
  history.pushState(visited.length - 1, "");
  return begin();
}

function begin() {
  part.query.hidden = false;
  part.invitation.hidden = true;
  if (typeof query.picture === "string") show(part.query, query.picture);
  else {
    const url = URL.createObjectURL(query.picture);
    part.query.onload = () => URL.revokeObjectURL(url);
    part.query.src = url;
  }
  settings();
  return search();
}

function photo(file) {
  if (!status) return;
  if (!inBrowser() && file.size > status.limits.bytes) {
    complain(`the photo has ${(file.size / 2 ** 20).toFixed(1)} MiB, and the service takes ${status.limits.bytes / 2 ** 20}; make it smaller`);
    return;
  }
  searchFor({ file, picture: file });
}

// ---- what was found

function draw(total) {
  const place = found.milliseconds, ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  const where = inBrowser() && query.file ? "in this browser" : "by the service";
  const steps = place.encode === undefined ? "" : `decoded in ${ms(place.decode)} and encoded in ${ms(place.encode)} ${where}, `;
  part.code.replaceChildren(strip(found.code, found.bits));
  part.hits.replaceChildren(...found.hits.map(drawn));
  part.told.dataset.spent = `${steps}searched in ${ms(place.search)}, ${ms(total)} in all`;
  within();
}

function drawn(hit) {
  const item = document.createElement("li"), button = document.createElement("button"), image = document.createElement("img");
  const facts = document.createElement("div"), near = document.createElement("div"), name = document.createElement("div");
  const original = document.createElement("a"), distance = document.createElement("span");
  const path = typeof hit.attributes.path === "string" ? hit.attributes.path : hit.id;
  Object.assign(item, { className: "hit" });
  Object.assign(item.dataset, { id: hit.id, distance: hit.distance, code: hit.code });
  Object.assign(button, { type: "button", title: `search on from ${path}` });
  Object.assign(image, { loading: "lazy", alt: path.split(/[\\/]/).pop() });
  Object.assign(original, { href: `${hit.image}?original=1`, target: "_blank", rel: "noreferrer", textContent: "original" });
  distance.textContent = `${hit.distance} ${hit.distance === 1 ? "bit" : "bits"}${hit.soft === null ? "" : ` · ${hit.soft.toFixed(2)}`}`;
  Object.assign(name, { className: "name", textContent: image.alt, title: path });
  facts.className = "facts";
  near.className = "near";
  show(image, hit.image);
  button.onclick = () => searchFor({ code: hit.code, picture: hit.image });
  original.onclick = (event) => { event.preventDefault(); openOriginal(hit.image); };
  button.append(image);
  near.append(distance, original);
  facts.append(near, strip(hit.code, found.bits, found.code), name);
  item.append(button, facts);
  return item;
}

/** Shows the hits within the radius. */
function within() {
  const radius = Number(part.radius.value);
  part["radius-value"].textContent = `${radius} of ${part.radius.max}`;
  if (!found) return;
  let shown = 0;
  for (const item of part.hits.children) shown += !(item.hidden = Number(item.dataset.distance) > radius);
  const what = shown ? `${shown} ${shown === 1 ? "result" : "results"}` : "Nothing within this radius";
  part.told.textContent = `${what}; ${part.told.dataset.spent}`;
  part.more.hidden = found.hits.length < query.k || query.k >= status.limits.hits || shown < found.hits.length;
}

/** Switches that mean nothing for the query are grey. */
function settings() {
  part.soft.disabled = query !== null && !byImage(query);
  part.modes.disabled = part.soft.disabled;
  part.where.textContent = inBrowser() ? "it stays on this machine" : "it is sent to the service and not kept";
}

// ---- hands

function columns() {
  const items = [...part.hits.querySelectorAll(".hit:not([hidden])")];
  const next = items.findIndex((item) => item.offsetTop > items[0].offsetTop);
  return { items, wide: next < 0 ? items.length : next };
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches?.("input, dialog *") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    part.pick.click();
    return;
  }
  const hit = event.target.closest?.(".hit"), { items, wide } = columns();
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide, ArrowUp: -wide };
  if (event.key in steps && items.length) {
    event.preventDefault();
    const next = hit ? items.indexOf(hit) + steps[event.key] : 0;
    items[Math.max(0, Math.min(items.length - 1, next))].querySelector("button").focus();
  } else if (event.key === "o" && hit) hit.querySelector("a").click();
});
part.pick.addEventListener("change", () => {
  if (part.pick.files.length) photo(part.pick.files[0]);
  part.pick.value = "";  // the same photo may be picked again
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) photo(file);
});
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]])
  document.addEventListener(name, (event) => {
    event.preventDefault();
    part.drop.classList.toggle("over", over);
    if (name === "drop" && event.dataTransfer.files.length) photo(event.dataTransfer.files[0]);
  });
part.radius.addEventListener("input", within);
part.more.addEventListener("click", () => {
  query.k = Math.min(2 * query.k, status.limits.hits);
  search();
});
for (const each of [part.soft, part.here, part.modes])
  each.addEventListener("change", () => {
    settings();
    if (query?.file) {
      query.code = null;
      search();
    }
  });
window.addEventListener("popstate", ({ state }) => {
  if (visited[state] === undefined) return;
  query = visited[state];
  begin();
});

try {
  status = await (await ask("/v1/status")).json();
  part.about.textContent = `${status.items.toLocaleString("en")} images, codes of ${status.bits} bits`;
  Object.assign(part.radius, { max: status.bits, value: status.bits });
  part["here-label"].hidden = status.browser === null;
  const modes = Object.keys(status.modes);
  part.modes.hidden = modes.length < 2;
  for (const each of document.querySelectorAll("[name=mode]")) each.checked = modes.length > 1 && each.value === modes[0];
  if (!modes.length && status.browser === null) complain("this index does not know its encoder: start the service with --encoder");
  settings();
  within();
} catch (error) { complain(error.message); }
