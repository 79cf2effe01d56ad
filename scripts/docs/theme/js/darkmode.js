// Follow the system's colors. The theme's own file fails without highlight.js, which would come from another server.
const dark = window.matchMedia('(prefers-color-scheme: dark)');

function follow() {
    document.documentElement.setAttribute('data-bs-theme', dark.matches ? 'dark' : 'light');
}

dark.addEventListener('change', follow);
follow();
