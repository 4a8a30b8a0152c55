// Without this script every row is there to be read; with it they can be filtered and searched.
"use strict";
const rows = [...document.querySelectorAll(".rows > li")];
const tools = document.querySelector(".tools");
const texts = new Map();

function textOf(row) {
  if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
  return texts.get(row);
}

function show() {
  const words = tools.querySelector("#search").value.toLowerCase().trim();
  const state = tools.querySelector("#state").value;
  const principle = tools.querySelector("#principle").value;
  let shown = 0;
  for (const row of rows) {
    const fits = (!state || row.dataset.states.split("|").includes(state))
      && (!principle || row.dataset.principles.split("|").includes(principle))
      && (!words || textOf(row).includes(words));
    row.hidden = !fits;
    shown += fits;
  }
  tools.querySelector("[role=status]").textContent = `${shown} of ${rows.length} rows shown`;
}

function openNamed() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const details = named && named.querySelector("details");
  if (details) {
    details.open = true;
    named.scrollIntoView();
  }
}

if (tools) {
  tools.hidden = false;
  tools.addEventListener("input", show);
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.querySelector("#open").addEventListener("click", () => {
    const there = rows.filter((row) => !row.hidden).map((row) => row.querySelector("details"));
    const all = there.every((one) => one.open);
    for (const one of there) one.open = !all;
  });
  show();
}
window.addEventListener("hashchange", openNamed);
openNamed();
