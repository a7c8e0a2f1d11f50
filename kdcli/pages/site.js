// Search, the keyboard and the copy buttons of a page; the page reads without it.
"use strict";
const box = document.getElementById("search"), list = document.getElementById("results");
const up = document.body.dataset.up;
const narrow = window.matchMedia("(max-width: 46rem)");
const contents = document.querySelector("nav details");
const unfold = () => { contents.open = !narrow.matches; };
narrow.addEventListener("change", unfold);
unfold();

function rank(title, words, text) {
  const name = title.toLowerCase();
  let sum = 0;
  for (const word of words) {
    if (name === word) sum += 100;
    else if (name.startsWith(word)) sum += 40;
    else if (name.split(/[^a-z0-9]+/).includes(word)) sum += 30;
    else if (name.includes(word)) sum += 15;
    else if (text.toLowerCase().includes(word)) sum += 3;
    else return 0;
  }
  return sum - name.length / 100;
}

function show() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const hits = !words.length ? [] : window.KDCLI_INDEX
    .map(([title, path, kind, text]) => ({ title, path, kind, text, rank: rank(title, words, text) + (kind === "page" ? 4 : 0) }))
    .filter((hit) => hit.rank > (hit.kind === "page" ? 4 : 0))
    .sort((one, other) => other.rank - one.rank)
    .slice(0, 12);
  list.replaceChildren(...hits.map((hit, number) => {
    const item = document.createElement("li"), link = document.createElement("a"), more = document.createElement("small");
    item.id = "hit" + number;
    item.setAttribute("role", "option");
    link.href = up + hit.path;
    link.tabIndex = -1;
    link.textContent = hit.title;
    more.textContent = hit.kind + (hit.text ? " · " + hit.text : "");
    link.append(more);
    item.append(link);
    return item;
  }));
  if (words.length && !hits.length) {
    const none = document.createElement("li");
    none.textContent = "no page has these words";
    list.append(none);
  }
  list.hidden = !words.length;
  box.setAttribute("aria-expanded", String(!list.hidden));
  choose(0);
}

function choose(number) {
  const items = [...list.querySelectorAll("[role=option]")];
  if (!items.length) return;
  const at = (number + items.length) % items.length;
  items.forEach((item, one) => item.setAttribute("aria-selected", String(one === at)));
  box.setAttribute("aria-activedescendant", items[at].id);
  items[at].scrollIntoView({ block: "nearest" });
}

const chosen = () => [...list.querySelectorAll("[role=option]")].findIndex((item) => item.getAttribute("aria-selected") === "true");
box.addEventListener("input", show);
box.addEventListener("keydown", (event) => {
  const link = list.querySelector("[aria-selected=true] a");
  if (event.key === "ArrowDown" || event.key === "ArrowUp") choose(chosen() + (event.key === "ArrowDown" ? 1 : -1));
  else if (event.key === "Enter" && link) location.href = link.href;
  else if (event.key === "Escape") { box.value = ""; show(); box.blur(); }
  else return;
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  const typing = /^(input|textarea|select)$/i.test(event.target.tagName);
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); box.focus(); }
});
document.addEventListener("click", (event) => { if (!event.target.closest(".search")) list.hidden = true; });

if (location.hash) {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (named && named.tagName === "DETAILS") named.open = true;
}
for (const block of document.querySelectorAll("pre:not(.seen)")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button");
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(block.querySelector("code").textContent);
    button.textContent = "copied";
  });
  block.append(button);
}
