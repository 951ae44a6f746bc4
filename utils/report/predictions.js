"use strict";
// Sorts and filters the cards, of which it keeps no more in the page than one has scrolled to. Without it all of them
// are there, in the given order.
const STEP = 240;
const form = document.getElementById("controls");
const list = document.getElementById("images");
const end = document.getElementById("end");
const count = document.getElementById("count");
const entries = Array.from(list.children, card => ({
  card,
  predicted: card.dataset.predicted,
  label: card.dataset.label ?? "",
  wrong: Number("label" in card.dataset && card.dataset.label !== card.dataset.predicted),
  confidence: Number(card.dataset.confidence),
  name: card.querySelector("h3").textContent.toLowerCase(),
}));
const orders = {
  given: () => 0,
  sure: (a, b) => b.confidence - a.confidence,
  unsure: (a, b) => a.confidence - b.confidence,
  class: (a, b) => a.predicted - b.predicted || b.confidence - a.confidence,
  mistakes: (a, b) => b.wrong - a.wrong || (a.wrong ? b.confidence - a.confidence : a.confidence - b.confidence),
};

function comparison(order) {
  if (order in orders) return orders[order];
  const index = Number(order.split(" ")[1]); // of the class that is to be most
  for (const entry of entries) entry.share ??= Array.from(entry.card.querySelectorAll("li"), share);
  return (a, b) => b.share[index] - a.share[index];
}

const share = bar => parseFloat(bar.style.getPropertyValue("--p"));
let waiting = []; // what fits and is not in the page yet

function fits(entry, wanted) {
  const percent = Math.round(100 * entry.confidence);
  return (!wanted.predicted || entry.predicted === wanted.predicted)
    && (!wanted.label || entry.label === wanted.label)
    && (!wanted.verdict || (entry.label !== "" && entry.wrong === Number(wanted.verdict === "wrong")))
    && percent >= Number(wanted.least) && percent <= Number(wanted.most || 100)
    && entry.name.includes(wanted.file.trim().toLowerCase());
}

function show() {
  const wanted = Object.fromEntries(new FormData(form));
  waiting = entries.filter(entry => fits(entry, wanted)).sort(comparison(wanted.order));
  count.textContent = `${waiting.length.toLocaleString("en")} of ${entries.length.toLocaleString("en")} images`;
  list.replaceChildren();
  showMore();
}

function showMore() {
  list.append(...waiting.splice(0, STEP).map(entry => entry.card));
  observer.unobserve(end); // so that it is told again where the end is still near
  observer.observe(end);
}

const observer = new IntersectionObserver(changes => {
  if (waiting.length && changes.some(change => change.isIntersecting)) showMore();
}, {rootMargin: "1500px"});

form.addEventListener("input", show);
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("reset", () => setTimeout(show)); // after the fields have been reset
form.hidden = false;
show(); // a browser may have kept the fields of the last visit
