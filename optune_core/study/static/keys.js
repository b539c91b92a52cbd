// Keys press the page's own buttons and links: without this file everything still works.
"use strict";
// Up and down are left to scrolling: long responses are read with them.
const KEYS = { "1": "first", ArrowLeft: "first", "2": "second", ArrowRight: "second", "0": "equal" };
const rate = document.getElementById("rate");
let sent = false;

rate?.addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
});
addEventListener("pageshow", () => { sent = false; });

addEventListener("keydown", (event) => {
  // A key that is held down must not rate the pairs that follow.
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input, summary")) return;
  if (event.key.toLowerCase() === "b") {
    document.getElementById("back")?.click();
  } else if (rate && Object.hasOwn(KEYS, event.key)) {
    event.preventDefault();
    rate.querySelector(`button[value="${KEYS[event.key]}"]`).click();
  }
});
