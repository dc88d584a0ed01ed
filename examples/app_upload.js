// Stops a file that is too large before it travels, and says so where the page of app.py says such things.
// Runs once, where messages stand; the server has the same limit.
function refuse(file) {
  const message = document.createElement("div");
  message.className = "message";
  message.setAttribute("role", "alert");
  const size = (file.size / 1e6).toFixed(0);
  message.innerHTML = "<b>This did not work.</b> ";
  message.append(`${file.name} has ${size} MB. This page takes up to ${props.megabytes} MB: cut it or make it smaller.`);
  props.value = message.outerHTML;
}

for (const kind of ["change", "drop"]) {
  document.addEventListener(
    kind,
    (event) => {
      const files = event.target.closest?.("#upload") ? (event.dataTransfer ?? event.target).files : null;
      const large = [...(files ?? [])].find((file) => file.size > props.megabytes * 1e6);
      if (!large) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      if (kind === "change") event.target.value = "";
      refuse(large);
    },
    true,
  );
}
