// Before the first paint: the theme that was chosen, or the system's.
document.body.dataset.theme = localStorage.getItem("theme") || "auto";
