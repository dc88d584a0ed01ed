// Refuse a file that is too large before it is uploaded, and show why on the page of app.py.
// Runs once, in the element of error messages. The server has the same limit.
function refuse(file) {
  const message = document.createElement("div");
  message.className = "message";
  message.setAttribute("role", "alert");
  const size = (file.size / 1e6).toFixed(0);
  message.innerHTML = "<b>Error:</b> ";
  message.append(`${file.name} is ${size} MB large. This page accepts up to ${props.megabytes} MB. Cut the video or reduce its size.`);
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
