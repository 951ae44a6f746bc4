@echo off
rem Called by the other scripts: goes to the project's folder, makes .venv there once and installs what is missing.
rem Usage: call "%~dp0setup_env.bat" [REQUIREMENTS_FILE]
cd /d "%~dp0.."
set PY=%CD%\.venv\Scripts\python.exe
if not exist "%PY%" (
    python -m venv .venv || exit /b 1
)
"%PY%" -m pip install --quiet --disable-pip-version-check -r requirements.txt || exit /b 1
if not "%~1"=="" (
    "%PY%" -m pip install --quiet --disable-pip-version-check -r "%~1" || exit /b 1
)
exit /b 0
