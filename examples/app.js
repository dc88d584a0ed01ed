// The timeline of the page of app.py. Runs once; `element` contains the timeline and stays while its content is replaced.
const overlay = () => document.querySelector("#overlay video");
const timeline = () => element.querySelector(".timeline");

function seek(second) {
  const { seconds, rate } = timeline().dataset;
  const bounded = Math.min(Math.max(second, 0), Number(seconds) - 0.001);
  if (overlay()) overlay().currentTime = bounded;
  trigger("select", { number: Math.floor(bounded * Number(rate)) });
}

element.addEventListener("click", (event) => {
  const track = event.target.closest(".track");
  if (!track || !timeline()) return;
  const box = track.getBoundingClientRect();
  seek(((event.clientX - box.left) / box.width) * Number(timeline().dataset.seconds));
});

element.addEventListener("keydown", (event) => {
  if (!timeline() || !overlay()) return;
  const now = overlay().currentTime;
  const step = 1 / Number(timeline().dataset.rate);
  const target = { ArrowLeft: now - step, ArrowRight: now + step, Home: 0, End: Infinity }[event.key];
  if (target === undefined) return;
  event.preventDefault();
  seek(target);
});

// Move the playhead with the video and highlight the classes that sound now. Ten times per second is enough and saves power.
function follow() {
  const chart = timeline();
  const video = overlay();
  if (chart && video) {
    const now = video.currentTime;
    chart.querySelector(".playhead").style.left = `${(now / Number(chart.dataset.seconds)) * 100}%`;
    chart.querySelector(".lane").setAttribute("aria-valuenow", now.toFixed(2));
    for (const row of chart.querySelectorAll(".row.class")) {
      const isSounding = [...row.querySelectorAll(".bar")].some(
        (bar) => now >= Number(bar.dataset.start) && now < Number(bar.dataset.end),
      );
      row.classList.toggle("now", isSounding);
    }
  }
}
setInterval(follow, 100);
