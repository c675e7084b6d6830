() => {
  // The button that hides the last tabs on narrow screens has no name of its own.
  new MutationObserver(() => {
    for (const button of document.querySelectorAll(".overflow-menu > button:not([aria-label])")) button.setAttribute("aria-label", "More tabs");
  }).observe(document.body, { childList: true, subtree: true });
  // A picture or recipe that is dropped anywhere brings its mix back, as where it is asked for.
  const mix = (transfer) => [...(transfer?.files || [])].find((file) => /\.(png|json|lset)$/i.test(file.name));
  document.addEventListener("dragover", (event) => { if ([...(event.dataTransfer?.types || [])].includes("Files")) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    const file = mix(event.dataTransfer);
    const input = document.querySelector("#dropped input[type=file]");
    if (!file || !input || event.target.closest("#restore")) return;
    event.preventDefault();
    event.stopPropagation();
    const moved = new DataTransfer();
    moved.items.add(file);
    input.files = moved.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }, true);
}
