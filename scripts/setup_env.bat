@echo off
rem Called by the other scripts: makes .venv in the project's folder once, installs what is missing, and sets
rem PROJECT, the project's folder, and PY, the interpreter. Usage: call "%~dp0setup_env.bat" [REQUIREMENTS_FILE]
rem LAFTER_PYTHON, a program's name or absolute path, is taken instead where it is set (an active conda environment:
rem set LAFTER_PYTHON=python); nothing is installed then. The folder that the user stands in is left alone.
for %%I in ("%~dp0..") do set "PROJECT=%%~fI"
if defined LAFTER_PYTHON goto own
set "PY=%PROJECT%\.venv\Scripts\python.exe"
if not exist "%PY%" echo making %PROJECT%\.venv and installing the requirements: once, PyTorch is large
if not exist "%PY%" python -m venv "%PROJECT%\.venv" || exit /b 1
"%PY%" -m pip install --quiet --disable-pip-version-check -r "%PROJECT%\requirements.txt" || exit /b 1
if "%~1"=="" exit /b 0
"%PY%" -m pip install --quiet --disable-pip-version-check -r "%~1" || exit /b 1
exit /b 0
:own
set "PY=%LAFTER_PYTHON:"=%"
"%PY%" -c "" && exit /b 0
echo error: LAFTER_PYTHON is '%PY%', which runs no Python 1>&2
exit /b 1
