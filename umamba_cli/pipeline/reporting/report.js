"use strict";
document.documentElement.classList.add("js");
for (const box of document.querySelectorAll(".case")) {
  const range = box.querySelector("input[type=range]");
  if (!range) continue;
  const slices = [...box.querySelectorAll(".slice")];
  const which = box.querySelector(".which");
  const show = () => {
    const chosen = Number(range.value);
    slices.forEach((slice, index) => { slice.hidden = index !== chosen; });
    which.textContent = slices[chosen].dataset.text;
    range.setAttribute("aria-valuetext", slices[chosen].dataset.text);
  };
  range.addEventListener("input", show);
  show();
}
addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("details.training:not([open])")) {
    closed.open = true;
    closed.dataset.printed = "";
  }
});
addEventListener("afterprint", () => {
  for (const opened of document.querySelectorAll("details[data-printed]")) {
    opened.open = false;
    delete opened.dataset.printed;
  }
});
